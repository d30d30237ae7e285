// The program that the tests run in containers. A container's first process gets no signal without a handler.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
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
int main(int argc, char **argv) {
	const char *do_ = argc > 1 ? argv[1] : "";
	struct sigaction a = {.sa_handler = on, .sa_flags = SA_RESTART};
	int sigs[] = {SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
	for (int i = 0; i < 4; i++) sigaction(sigs[i], &a, 0);
	if (!strcmp(do_, "exit")) return atoi(argv[2]);
	if (!strcmp(do_, "print")) { for (int i = 2; i < argc; i++) say(argv[i]); return 0; }
	if (!strcmp(do_, "both")) { say("to stdout\n"); all(2, "to stderr\n", 10); return 0; }
	if (!strcmp(do_, "sleep")) { say("ready\n"); for (;;) pause(); }
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
	if (!strcmp(do_, "eat")) { for (;;) { char *p = malloc(1 << 20); if (!p) return 97; memset(p, 1, 1 << 20); } }
	return 96;
}
