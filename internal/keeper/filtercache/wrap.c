//go:build cgo && seccomp

// Between libcontainer and libseccomp: see doc.go. One filter is described at a time, by one thread at a time, as
// libcontainer does it in init; calls for any other filter pass untouched.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "wrap.h"

scmp_filter_ctx __real_seccomp_init(uint32_t action);
void __real_seccomp_release(scmp_filter_ctx ctx);
int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch);
int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args);
int __real_seccomp_export_bpf(scmp_filter_ctx ctx, int fd);

static enum { OFF, USE, LEARN } mode;
static int learn_fd;
static bool trapping; // what is installed is learned, too
static const uint8_t *learned; // a row of entries: two lengths, the description, the program
static size_t learned_len;

// call is one step of a description as it is written down; a rule has its arguments' conditions behind it.
struct call {
	uint32_t kind, action, what, n;
};
struct condition {
	uint32_t arg, op;
	uint64_t a, b;
};
enum { INIT = 1, ARCH, ATTR, RULE, EXACT_RULE };

static struct {
	scmp_filter_ctx ctx; // the filter that is being described
	bool whole;          // every step was written down
	uint8_t *bytes;
	size_t len, cap;
} description;

static bool put(const void *p, size_t n)
{
	if (description.len + n > description.cap) {
		size_t cap = description.cap * 2 + n + 4096;
		uint8_t *bytes = realloc(description.bytes, cap);
		if (bytes == NULL)
			return description.whole = false;
		description.bytes = bytes;
		description.cap = cap;
	}
	memcpy(description.bytes + description.len, p, n);
	description.len += n;
	return true;
}

static bool note(uint32_t kind, uint32_t action, uint32_t what, unsigned int n, const struct scmp_arg_cmp *args)
{
	struct call c = { kind, action, what, n };
	bool ok = put(&c, sizeof c);
	for (unsigned int i = 0; ok && i < n; i++) {
		struct condition d = { args[i].arg, args[i].op, args[i].datum_a, args[i].datum_b };
		ok = put(&d, sizeof d);
	}
	return ok;
}

static bool ours(scmp_filter_ctx ctx)
{
	return mode != OFF && ctx != NULL && ctx == description.ctx && description.whole;
}

// replay tells libseccomp the rules that were only written down so far, and no more are held back from it.
static int replay(void)
{
	int first = 0;
	description.whole = false;
	for (size_t at = 0; at < description.len;) {
		struct call c;
		struct scmp_arg_cmp args[6];
		memcpy(&c, description.bytes + at, sizeof c);
		at += sizeof c;
		for (uint32_t i = 0; i < c.n; i++, at += sizeof(struct condition)) {
			struct condition d;
			memcpy(&d, description.bytes + at, sizeof d);
			args[i] = (struct scmp_arg_cmp){ d.arg, d.op, d.a, d.b };
		}
		int rc = 0;
		if (c.kind == RULE)
			rc = __real_seccomp_rule_add_array(description.ctx, c.action, (int)c.what, c.n, args);
		else if (c.kind == EXACT_RULE)
			rc = __real_seccomp_rule_add_exact_array(description.ctx, c.action, (int)c.what, c.n, args);
		if (rc < 0 && first == 0)
			first = rc;
	}
	return first;
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	scmp_filter_ctx ctx = __real_seccomp_init(action);
	if (mode != OFF && ctx != NULL) {
		description.ctx = ctx;
		description.len = 0;
		description.whole = true;
		note(INIT, action, 0, 0, NULL);
	}
	return ctx;
}

void __wrap_seccomp_release(scmp_filter_ctx ctx)
{
	if (ctx == description.ctx)
		description.ctx = NULL;
	__real_seccomp_release(ctx);
}

int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	int rc = __real_seccomp_arch_add(ctx, arch);
	if (rc == 0 && ours(ctx))
		note(ARCH, 0, arch, 0, NULL);
	return rc;
}

int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	int rc = __real_seccomp_attr_set(ctx, attr, value);
	if (rc == 0 && ours(ctx))
		note(ATTR, attr, value, 0, NULL);
	return rc;
}

typedef int (*add_rule)(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);

// rule holds a rule back while the filter may turn out to be known: it is adding rules that takes time.
static int rule(add_rule add, uint32_t kind, scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	if (!ours(ctx))
		return add(ctx, action, syscall, n, args);
	if (n > 6)
		return -EINVAL;
	if (mode == LEARN) {
		int rc = add(ctx, action, syscall, n, args);
		if (rc == 0)
			note(kind, action, (uint32_t)syscall, n, args);
		return rc;
	}
	size_t before = description.len;
	if (note(kind, action, (uint32_t)syscall, n, args))
		return 0;
	description.len = before;
	int rc = replay();
	return rc < 0 ? rc : add(ctx, action, syscall, n, args);
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	return rule(__real_seccomp_rule_add_array, RULE, ctx, action, syscall, n, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args)
{
	return rule(__real_seccomp_rule_add_exact_array, EXACT_RULE, ctx, action, syscall, n, args);
}

static int write_all(int fd, const void *p, size_t n)
{
	for (const uint8_t *at = p; n > 0;) {
		ssize_t w = write(fd, at, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return -errno;
		at += w;
		n -= (size_t)w;
	}
	return 0;
}

// learn compiles the filter into out and writes the entry.
static int learn(scmp_filter_ctx ctx, int out)
{
	int fd = memfd_create("filter", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	struct stat st;
	int rc = __real_seccomp_export_bpf(ctx, fd);
	if (rc == 0 && fstat(fd, &st) != 0)
		rc = -errno;
	if (rc == 0) {
		uint32_t lengths[2] = { (uint32_t)description.len, (uint32_t)st.st_size };
		void *program = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (program == MAP_FAILED)
			rc = -errno;
		if (rc == 0)
			rc = write_all(learn_fd, lengths, sizeof lengths);
		if (rc == 0)
			rc = write_all(learn_fd, description.bytes, description.len);
		if (rc == 0)
			rc = write_all(learn_fd, program, (size_t)st.st_size);
		if (rc == 0)
			rc = write_all(out, program, (size_t)st.st_size);
	}
	close(fd);
	return rc < 0 || trapping ? rc : -ECANCELED;
}

int __wrap_seccomp_export_bpf(scmp_filter_ctx ctx, int fd)
{
	if (!ours(ctx))
		return __real_seccomp_export_bpf(ctx, fd);
	if (mode == LEARN)
		return learn(ctx, fd);
	for (size_t at = 0; learned_len - at >= 8;) {
		uint32_t lengths[2];
		memcpy(lengths, learned + at, sizeof lengths);
		at += sizeof lengths;
		if ((uint64_t)lengths[0] + lengths[1] > learned_len - at)
			break;
		if (lengths[0] == description.len && memcmp(learned + at, description.bytes, description.len) == 0)
			return write_all(fd, learned + at + lengths[0], lengths[1]);
		at += (size_t)lengths[0] + lengths[1];
	}
	int rc = replay();
	return rc < 0 ? rc : __real_seccomp_export_bpf(ctx, fd);
}

int filtercache_use(int fd)
{
	static const char magic[8] = FILTERCACHE_MAGIC;
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_WRITE))
		return 0;
	if (fstat(fd, &st) == 0 && (size_t)st.st_size >= sizeof magic) {
		const uint8_t *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
		if (p != MAP_FAILED && memcmp(p, magic, sizeof magic) == 0) {
			learned = p + sizeof magic;
			learned_len = (size_t)st.st_size - sizeof magic;
			mode = USE;
		}
	}
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (null < 0 || dup3(null, fd, O_CLOEXEC) < 0)
		return errno;
	close(null);
	return 0;
}

void filtercache_learn(int fd)
{
	learn_fd = fd;
	mode = LEARN;
}

#if defined(__x86_64__)
#define ARGUMENT(context, i) ((uint64_t)(context)->uc_mcontext.gregs[(const int[]){ REG_RDI, REG_RSI, REG_RDX }[i]])
#define RETURN(context, value) ((context)->uc_mcontext.gregs[REG_RAX] = (value))
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARGUMENT(context, i) ((uint64_t)(context)->uc_mcontext.regs[i])
#define RETURN(context, value) ((context)->uc_mcontext.regs[0] = (unsigned long long)(value))
#define ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef ARCH
// trapped sees the two system calls by which a filter is installed, in place of the kernel.
static void trapped(int sig, siginfo_t *info, void *context)
{
	ucontext_t *c = context;
	bool newer = info->si_syscall == SYS_seccomp;
	const struct sock_fprog *program = (const void *)(uintptr_t)ARGUMENT(c, 2);
	(void)sig;
	if (program == NULL) { // a question whether the kernel knows a flag
		RETURN(c, -EFAULT);
		return;
	}
	uint32_t head[2] = { newer ? (uint32_t)ARGUMENT(c, 1) : 0, program->len * (uint32_t)sizeof(struct sock_filter) };
	_exit(write_all(learn_fd, head, sizeof head) == 0 && write_all(learn_fd, program->filter, head[1]) == 0 ? 0 : 1);
}

int filtercache_trap(void)
{
	struct sock_filter trap[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 0, 9),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 3, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SECCOMP_SET_MODE_FILTER, 3, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_SECCOMP, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof trap / sizeof trap[0], trap };
	struct sigaction action = { .sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	if (sigaction(SIGSYS, &action, NULL) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
		return errno;
	trapping = true;
	return 0;
}
#else
int filtercache_trap(void)
{
	return ENOSYS;
}
#endif
