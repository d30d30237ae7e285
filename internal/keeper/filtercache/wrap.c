//go:build cgo && seccomp

// Between libcontainer and libseccomp: see doc.go. One filter is described at a time, by one thread at a time, as
// libcontainer does it in init; calls for any other filter pass untouched.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
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

// learn compiles the filter and writes the entry.
static int learn(scmp_filter_ctx ctx)
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
	}
	close(fd);
	return rc < 0 ? rc : -ECANCELED;
}

int __wrap_seccomp_export_bpf(scmp_filter_ctx ctx, int fd)
{
	if (!ours(ctx))
		return __real_seccomp_export_bpf(ctx, fd);
	if (mode == LEARN)
		return learn(ctx);
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
