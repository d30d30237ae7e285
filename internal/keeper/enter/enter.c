//go:build cgo

// See doc.go. What runs here is one thread of a program that has not started Go: a constructor, before main.

#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "enter.h"

enum { SOCKET = 3, PIDFD = 4, GROUP = 5 };

// What can be asked for is bounded by what the kernel lets execve take: a quarter of the stack's limit, 6 MiB at the most.
static const uint32_t most = 8u << 20;

static void __attribute__((noreturn)) fail(int step)
{
	struct report r = { REPORT_FAILED, step << 16 | (errno & 0xffff) };
	ssize_t n = write(SOCKET, &r, sizeof r);
	_exit(n == sizeof r ? 1 : 2);
}

static bool read_all(int fd, void *p, size_t n)
{
	for (char *at = p; n > 0;) {
		ssize_t r = read(fd, at, n);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		at += r;
		n -= (size_t)r;
	}
	return true;
}

struct process {
	struct request head;
	const uint32_t *groups;
	struct sock_fprog filter;
	const char *keyring, *cwd;
	char **args, **env; // env has one place free for HOME
};

// take cuts n bytes off the message; NULL if there are fewer, or if a text does not end where it says.
static char *take(char **at, uint32_t *left, uint64_t n, bool text)
{
	char *p = *at;
	if (n > *left || (text && (n == 0 || p[n - 1] != 0)))
		return NULL;
	*at += n;
	*left -= (uint32_t)n;
	return p;
}

// list makes a NULL-terminated list of n texts that lie behind each other in size bytes, with spare places at its end.
static char **list(char *p, uint32_t size, uint32_t n, uint32_t spare)
{
	char **out = calloc((size_t)n + spare + 1, sizeof *out);
	if (out == NULL || n > size)
		return NULL;
	for (uint32_t i = 0; i < n; i++) {
		size_t len = strnlen(p, size);
		if (len == size)
			return NULL;
		out[i] = p;
		p += len + 1;
		size -= (uint32_t)len + 1;
	}
	return size == 0 ? out : NULL;
}

static bool receive(struct process *p)
{
	struct request *h = &p->head;
	if (!read_all(SOCKET, h, sizeof *h) || h->magic != ENTER_MAGIC || h->size > most)
		return false;
	char *at = malloc(h->size);
	uint32_t left = h->size;
	if (at == NULL || !read_all(SOCKET, at, h->size))
		return false;
	// The filter first: its instructions are eight bytes each, and the groups four.
	p->filter.len = (unsigned short)h->filter;
	p->filter.filter = (struct sock_filter *)take(&at, &left, (uint64_t)h->filter * sizeof(struct sock_filter), false);
	p->groups = (const uint32_t *)take(&at, &left, (uint64_t)h->groups * sizeof(uint32_t), false);
	if (h->filter > BPF_MAXINSNS || p->filter.filter == NULL || p->groups == NULL)
		return false;
	p->keyring = take(&at, &left, h->keyring, true);
	p->cwd = take(&at, &left, h->cwd, true);
	char *args = take(&at, &left, h->args_size, true);
	char *env = h->env_size > 0 ? take(&at, &left, h->env_size, true) : at;
	if (p->keyring == NULL || p->cwd == NULL || args == NULL || env == NULL || left != 0 || h->args == 0)
		return false;
	p->args = list(args, h->args_size, h->args, 0);
	p->env = list(env, h->env_size, h->env, 1);
	return p->args != NULL && p->env != NULL;
}

static void set_oom_score_adj(int32_t value)
{
	char text[16];
	int n = snprintf(text, sizeof text, "%d", value);
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		fail(1);
	close(fd);
}

// enter_home finds a user's folder in a passwd file's text, which it takes apart, as libcontainer does: spaces around a line
// are nothing, a number that is missing or none is 0; without an entry the folder is "/".
const char *enter_home(char *text, uint32_t uid)
{
	for (char *line; (line = strsep(&text, "\n")) != NULL;) {
		line += strspn(line, " \t");
		for (size_t len = strlen(line); len > 0 && strchr(" \t", line[len - 1]) != NULL;)
			line[--len] = 0;
		if (*line == 0)
			continue;
		char *field[6] = { NULL };
		for (int i = 0; i < 6 && line != NULL; i++)
			field[i] = strsep(&line, ":");
		long long id = 0;
		if (field[2] != NULL && *field[2] != 0 && !isspace((unsigned char)field[2][0])) {
			char *end;
			errno = 0;
			id = strtoll(field[2], &end, 10);
			if (*end != 0)
				id = 0;
			else if (errno != 0)
				id = -1;
		}
		if (id == uid)
			return field[5] != NULL ? field[5] : "";
	}
	return "/";
}

// home is the folder of a user as the container's /etc/passwd has it. What is odd about that file is left to libcontainer.
static const char *home(uint32_t uid)
{
	enum { LIMIT = 60000 }; // no line is longer than libcontainer reads
	int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd < 0)
		return "/";
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		fail(2);
	char *text = calloc(1, LIMIT + 1);
	ssize_t n = 0;
	for (ssize_t r = 1; r > 0; n += r) { // not as much as it says: some file systems say nothing
		r = text == NULL || n == LIMIT ? -1 : read(fd, text + n, (size_t)(LIMIT - n));
		if (r < 0)
			fail(2);
	}
	close(fd);
	for (ssize_t i = 0; i < n; i++) {
		if (text[i] == 0 || strchr("\r\v\f\xc2\xe1\xe2\xe3", text[i]) != NULL) // the last four begin Unicode's spaces
			fail(2);
	}
	return enter_home(text, uid);
}

static void add_home(struct process *p)
{
	char *entry;
	if (asprintf(&entry, "HOME=%s", home(p->head.uid)) < 0)
		fail(2);
	p->env[p->head.env] = entry;
}

static void install_filter(const struct process *p)
{
	if (p->head.filter > 0 && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, p->head.filter_flags, &p->filter) != 0)
		fail(3);
}

static void bound_capabilities(uint64_t set)
{
	for (int c = 0; c < 64; c++) {
		int has = prctl(PR_CAPBSET_READ, c, 0, 0, 0);
		if (has < 0)
			return; // past the last that the kernel knows
		if (has == 1 && !(set >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) != 0)
			fail(4);
	}
}

// own_streams gives the streams to the user, as a program expects to be able to open /dev/stdout again.
static void own_streams(uint32_t uid)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;
		if (fstat(fd, &st) != 0)
			fail(5);
		if (st.st_uid == uid || (S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)))
			continue;
		if (fchown(fd, uid, (gid_t)-1) != 0 && errno != EPERM && errno != EROFS)
			fail(5);
	}
}

static void take_capabilities(const struct request *h)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	for (int i = 0; i < 2; i++) {
		data[i].effective = (uint32_t)(h->effective >> (32 * i));
		data[i].permitted = (uint32_t)(h->permitted >> (32 * i));
		data[i].inheritable = (uint32_t)(h->inheritable >> (32 * i));
	}
	if (syscall(SYS_capset, &head, data) != 0)
		fail(6);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 && errno != EINVAL)
		fail(6);
	for (int c = 0; c < 64; c++) {
		if (h->ambient >> c & 1)
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, c, 0, 0); // libcontainer goes on without it, too
	}
}

// become_user is libcontainer's finalizeNamespace.
static void become_user(const struct process *p)
{
	const struct request *h = &p->head;
	bool there = chdir(p->cwd) == 0;
	if (!there && errno != EACCES && errno != EPERM)
		fail(7);
	bound_capabilities(h->bounding);
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0)
		fail(7);
	own_streams(h->uid);
	if (syscall(SYS_setgroups, h->groups, p->groups) != 0 || syscall(SYS_setgid, h->gid) != 0 || syscall(SYS_setuid, h->uid) != 0)
		fail(8);
	if (!there && chdir(p->cwd) != 0)
		fail(7);
	char cwd[PATH_MAX + 1];
	// The kernel puts "(unreachable)" in front of a folder that is not below the root.
	if (syscall(SYS_getcwd, cwd, sizeof cwd) < 0 || cwd[0] != '/')
		fail(9);
	if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) != 0)
		fail(7);
	take_capabilities(h);
}

#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif

static bool executable(const char *path)
{
	struct stat st;
	if (stat(path, &st) != 0 || S_ISDIR(st.st_mode))
		return false;
	if (syscall(SYS_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS) == 0)
		return true;
	return (errno == ENOSYS || errno == EPERM) && (st.st_mode & 0111) != 0;
}

// clean tells whether a folder's path, without the slashes at its end, is as Go's filepath.Join leaves it. Others are
// shortened there by their text, which can lead elsewhere than the file system does.
static bool clean(const char *dir, size_t n)
{
	if (n == 0 || dir[0] != '/')
		return false;
	for (size_t i = 0; i + 1 < n; i++) {
		size_t part = dir[i] == '/' ? strcspn(dir + i + 1, "/:") : 3;
		if (part == 0 || (part < 3 && strspn(dir + i + 1, ".") >= part))
			return false;
	}
	return true;
}

// find returns where the program is by the PATH that it will have, NULL if it is not found or the way is not plain.
static const char *find(const struct process *p, const char *name)
{
	static char path[PATH_MAX];
	if (strchr(name, '/') != NULL)
		return executable(name) ? name : NULL;
	const char *dirs = NULL;
	for (char **e = p->env; *e != NULL; e++) {
		if (strncmp(*e, "PATH=", 5) == 0)
			dirs = *e + 5;
	}
	while (dirs != NULL) {
		size_t len = strcspn(dirs, ":"), dir = len;
		while (dir > 1 && dirs[dir - 1] == '/')
			dir--;
		if (!clean(dirs, dir))
			return NULL;
		int n = snprintf(path, sizeof path, "%.*s%s%s", (int)dir, dirs, dir == 1 && dirs[0] == '/' ? "" : "/", name);
		if (n > 0 && (size_t)n < sizeof path && executable(path))
			return path;
		dirs = dirs[len] == ':' ? dirs + len + 1 : NULL;
	}
	return NULL;
}

static void __attribute__((noreturn)) become(struct process *p)
{
	struct request *h = &p->head;
	char go;
	if (!read_all(SOCKET, &go, 1))
		_exit(2); // the keeper has gone
	if ((h->namespaces & CLONE_NEWCGROUP) && setns(PIDFD, CLONE_NEWCGROUP) != 0)
		fail(21);
	close(PIDFD);
	if (setsid() < 0)
		fail(10);
	// Root of the user namespace, if one was joined; it changes nothing elsewhere.
	if (syscall(SYS_setuid, 0) != 0 || syscall(SYS_setgid, 0) != 0)
		fail(11);
	if (p->keyring[0] != 0 && syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, p->keyring) < 0)
		fail(12);
	if ((h->flags & ENTER_NO_NEW_PRIVS) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		fail(13);
	if (h->flags & ENTER_UMASK)
		umask((mode_t)h->umask);
	if (h->flags & ENTER_HOME)
		add_home(p);
	// Without no_new_privs a filter takes the privilege that is about to go; with it, it comes as late as can be.
	if (!(h->flags & ENTER_NO_NEW_PRIVS))
		install_filter(p);
	become_user(p);
	const char *program = find(p, p->args[0]);
	if (program == NULL)
		fail(14);
	if (h->flags & ENTER_NO_NEW_PRIVS)
		install_filter(p);
	execve(program, p->args, p->env);
	fail(15);
}

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

// make_child forks. The child's parent is the keeper, not this process. It begins in the control group that was given, if
// any, which for version 2 is quicker than putting it there; what it would hold of that, and what may be frozen there, is
// the child alone.
static long make_child(bool into_group)
{
	struct { // struct clone_args of <linux/sched.h>, which does not go with <sched.h>
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
	} args = { 0 };
	if (!into_group)
		return syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	args.flags = CLONE_PARENT | CLONE_INTO_CGROUP; // the signal at its end is the one of this process
	args.cgroup = GROUP;
	long pid = syscall(SYS_clone3, &args, sizeof args);
	int error = errno;
	close(GROUP);
	errno = error;
	return pid;
}

static void __attribute__((constructor)) enter(int argc, char **argv, char **envp)
{
	(void)envp;
	if (argc != 2 || strcmp(argv[1], "enter") != 0)
		return;
	struct process p = { 0 };
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
		fail(16);
	// Nothing of the host but the streams, the socket, the pidfd and the control group may come along.
	if (syscall(SYS_close_range, GROUP + 1, ~0u, 0) != 0 || fcntl(SOCKET, F_SETFD, FD_CLOEXEC) != 0)
		fail(17);
	if (!receive(&p)) {
		errno = EBADMSG;
		fail(18);
	}
	if (!(p.head.flags & ENTER_GROUP))
		close(GROUP); // whatever it is, it was not given
	set_oom_score_adj(p.head.oom_score_adj);
	// In the container's control group namespace this process, which is not in its groups, might make none there.
	if (setns(PIDFD, (int)p.head.namespaces & ~CLONE_NEWCGROUP) != 0)
		fail(19);
	long pid = make_child(p.head.flags & ENTER_GROUP);
	if (pid < 0)
		fail(20);
	if (pid == 0)
		become(&p);
	struct report r = { REPORT_PID, (int32_t)pid };
	_exit(write(SOCKET, &r, sizeof r) == sizeof r ? 0 : 2);
}
