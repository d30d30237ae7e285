// The program that the tests run in containers. A container's first process gets no signal without a handler.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void all(int fd, const char *p, size_t n) {
	while (n > 0) {
		ssize_t w = write(fd, p, n);
		if (w < 0) _exit(99);
		p += w; n -= w;
	}
}
static void say(const char *s) { all(1, s, strlen(s)); }
static void size(void) {
	struct winsize w = {0};
	char line[64];
	ioctl(0, TIOCGWINSZ, &w);
	snprintf(line, sizeof line, "size %dx%d\n", w.ws_row, w.ws_col);
	say(line);
}
static void file(const char *path, const char **only) { // the whole file, or the lines that begin so
	char line[65536];
	FILE *f = fopen(path, "r");
	if (!f) { say(path); say(": none\n"); return; }
	while (fgets(line, sizeof line, f)) {
		int wanted = only == NULL;
		for (const char **o = only; o && *o; o++) wanted |= !strncmp(line, *o, strlen(*o));
		if (wanted) say(line);
	}
	fclose(f);
}
// self tells all that a process has of what it was started with, but what differs between any two.
static void self(int argc, char **argv) {
	extern char **environ;
	char text[8192];
	const char *fields[] = {"Uid:", "Gid:", "Groups:", "Umask:", "SigBlk:", "SigIgn:", "SigCgt:", "Cap", "NoNewPrivs:", "Seccomp", "Cpus_allowed:", "Mems_allowed:", "THP_enabled:", "Threads:", "CoreDumping:", NULL};
	for (int i = 0; i < argc; i++) { snprintf(text, sizeof text, "argument %s\n", argv[i]); say(text); }
	for (char **e = environ; *e; e++) { snprintf(text, sizeof text, "environment %s\n", *e); say(text); }
	file("/proc/self/status", fields);
	file("/proc/self/limits", NULL);
	file("/proc/self/cgroup", NULL);
	file("/proc/self/oom_score_adj", NULL);
	file("/proc/self/timerslack_ns", NULL);
	const char *ns[] = {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts", NULL};
	for (const char **n = ns; *n; n++) {
		char path[64], mine[64] = "", first[64] = "";
		snprintf(path, sizeof path, "/proc/self/ns/%s", *n);
		if (readlink(path, mine, sizeof mine - 1) < 0) strcpy(mine, "none");
		snprintf(path, sizeof path, "/proc/1/ns/%s", *n);
		if (readlink(path, first, sizeof first - 1) < 0) strcpy(first, "cannot be seen");
		snprintf(text, sizeof text, "namespace %s %s\n", *n, !strcmp(first, "cannot be seen") ? first : !strcmp(mine, first) ? "is the container's" : "is another");
		say(text);
	}
	const char *links[] = {"cwd", "root", "exe", NULL};
	for (const char **l = links; *l; l++) {
		char path[64], to[4096] = "";
		snprintf(path, sizeof path, "/proc/self/%s", *l);
		if (readlink(path, to, sizeof to - 1) < 0) snprintf(to, sizeof to, "error %d", errno);
		snprintf(text, sizeof text, "%s %s\n", *l, to);
		say(text);
	}
	for (int fd = 0; fd < 1024; fd++) {
		struct stat st;
		if (fstat(fd, &st) < 0) continue;
		snprintf(text, sizeof text, "descriptor %d mode %o owner %d:%d flags %x\n", fd, st.st_mode, st.st_uid, st.st_gid, fcntl(fd, F_GETFL));
		say(text);
	}
	int signal_at_death = -1;
	prctl(PR_GET_PDEATHSIG, &signal_at_death);
	snprintf(text, sizeof text, "session %d group %d dumpable %d keep capabilities %d death signal %d nice %d personality %x securebits %x\n",
		getsid(0) == getpid(), getpgid(0) == getpid(), prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS), signal_at_death, nice(0), personality(0xffffffff), prctl(PR_GET_SECUREBITS));
	say(text);
	long ring = syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3 /* the session's */, 0);
	memset(text, 0, sizeof text);
	if (ring < 0 || syscall(SYS_keyctl, 6 /* DESCRIBE */, ring, text, sizeof text - 2) < 0) snprintf(text, sizeof text, "error %d", errno);
	say("keyring "); say(text); say("\n");
	errno = 0;
	long unknown = syscall(2000);
	snprintf(text, sizeof text, "a system call of the future %ld %d\n", unknown, errno); say(text);
	errno = 0;
	int mounted = mount("none", "/tmp", "tmpfs", 0, NULL);
	snprintf(text, sizeof text, "mount %d %d\n", mounted, errno); say(text);
	int console = open("/dev/tty", O_RDWR);
	snprintf(text, sizeof text, "terminal %d\n", console >= 0); say(text);
}
static int lines;
static void on(int sig) {
	char line[64];
	switch (sig) {
	case SIGTERM: _exit(7);
	case SIGUSR1: snprintf(line, sizeof line, "line %d\n", ++lines); say(line); break;
	case SIGUSR2: say("last words"); _exit(5);
	case SIGWINCH: size(); break;
	}
}
static void *spin(void *nothing) { for (volatile long n = 0;; n++) {} return nothing; }
int main(int argc, char **argv) {
	const char *do_ = argc > 1 ? argv[1] : "";
	struct sigaction a = {.sa_handler = on, .sa_flags = SA_RESTART};
	int sigs[] = {SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
	for (int i = 0; i < 4; i++) sigaction(sigs[i], &a, 0);
	if (!strcmp(do_, "exit")) return atoi(argv[2]);
	if (!strcmp(do_, "print")) { for (int i = 2; i < argc; i++) say(argv[i]); return 0; }
	if (!strcmp(do_, "both")) { say("to stdout\n"); all(2, "to stderr\n", 10); return 0; }
	if (!strcmp(do_, "sleep")) { say("ready\n"); for (;;) pause(); }
	if (!strcmp(do_, "busy")) { // busy N: so many processes that do nothing but compute, for five minutes at the most
		signal(SIGALRM, _exit);
		alarm(300);
		for (int i = 0; i < atoi(argv[2]); i++)
			if (fork() == 0) { alarm(300); for (volatile long n = 0;; n++) {} }
		say("ready\n"); for (;;) pause();
	}
	if (!strcmp(do_, "changer")) { // changer N: becomes itself again and again, each time with so many busy threads
		if (getenv("AGAIN") == NULL) { alarm(300); say("ready\n"); setenv("AGAIN", "1", 1); }
		signal(SIGALRM, SIG_DFL);
		for (int i = 0; i < atoi(argv[2]); i++) { pthread_t t; pthread_create(&t, NULL, spin, NULL); }
		execv("/proc/self/exe", argv);
		return 95;
	}
	if (!strcmp(do_, "stopper")) { say("ready\n"); for (;;) kill(-1, SIGSTOP); } // stops whatever comes into its container
	if (!strcmp(do_, "cat")) {
		char buf[4096]; ssize_t n;
		while ((n = read(0, buf, sizeof buf)) > 0) all(1, buf, n);
		return n < 0 ? 98 : 0;
	}
	if (!strcmp(do_, "spew")) { // spew BYTES: the generator is repeated in the test
		uint64_t x = 88172645463325252ull; long n = atol(argv[2]);
		char buf[4096]; size_t have = 0;
		for (long i = 0; i < n; i++) {
			x ^= x << 13; x ^= x >> 7; x ^= x << 17;
			char c = (char)(x >> 32);
			if ((i / 100000) % 2 && c == '\n') c = '.'; // stretches without a line's end
			buf[have++] = c;
			if (have == sizeof buf) { all(1, buf, have); have = 0; }
		}
		all(1, buf, have);
		return 0;
	}
	if (!strcmp(do_, "flood")) { char buf[4096]; memset(buf, 'f', sizeof buf); for (;;) all(1, buf, sizeof buf); }
	if (!strcmp(do_, "count")) { // count N: numbered lines
		char line[64];
		for (long i = 0; i < atol(argv[2]); i++) { int n = snprintf(line, sizeof line, "%ld\n", i); all(1, line, n); }
		say("done\n"); for (;;) pause();
	}
	if (!strcmp(do_, "tty")) { say(isatty(0) && isatty(1) ? "tty\n" : "no tty\n"); size(); for (;;) pause(); }
	if (!strcmp(do_, "filter")) { // what seccomp says of mkdir, and which descriptors are open
		char line[64];
		errno = 0;
		mkdir("/dev/x", 0700);
		snprintf(line, sizeof line, "mkdir %d, mode %d, open", errno, prctl(PR_GET_SECCOMP));
		say(line);
		for (int fd = 0; fd < 1024; fd++)
			if (fcntl(fd, F_GETFD) >= 0) { snprintf(line, sizeof line, " %d", fd); say(line); }
		return 0;
	}
	if (!strcmp(do_, "self")) { self(argc, argv); return 0; }
	if (!strcmp(do_, "pid")) { char line[64]; snprintf(line, sizeof line, "%d", getpid()); say(line); return 0; }
	if (!strcmp(do_, "eat")) { for (;;) { char *p = malloc(1 << 20); if (!p) return 97; memset(p, 1, 1 << 20); } }
	return 96;
}
