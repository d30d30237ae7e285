// sampan-init is the first process of a container that was started with --init. It runs the container's own process as
// its child, passes signals on to it, reaps what is orphaned inside the container, and ends as the child ended. It is
// mounted read-only at /sbin/docker-init, so it is static and knows nothing of the container's files.
//
//	sampan-init [--] PROGRAM [ARGUMENT…]
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// A child's faults are its own; a fault of ours must still end us.
static const int own[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGABRT, SIGTRAP, SIGSYS};

static void fail(const char *what) {
	int code = errno == ENOENT || errno == ENOTDIR ? 127 : 126;
	fprintf(stderr, "sampan-init: %s: %s\n", what, strerror(errno));
	exit(code);
}

// run becomes the program, in a process group of its own that has the terminal, with the signals as they were.
static void run(char **argv, const sigset_t *mask) {
	if (setpgid(0, 0) < 0)
		fail("process group");
	// Taking the terminal from the background is announced with a signal that would stop us.
	signal(SIGTTOU, SIG_IGN);
	if (tcsetpgrp(STDIN_FILENO, getpgrp()) < 0 && errno != ENOTTY && errno != ENXIO && errno != EBADF)
		fail("terminal");
	signal(SIGTTOU, SIG_DFL);
	if (sigprocmask(SIG_SETMASK, mask, NULL) < 0)
		fail("signals");
	execvp(argv[0], argv);
	fail(argv[0]);
}

// reap takes every process that has ended; it returns the exit code of child when that is among them, else -1.
static int reap(pid_t child) {
	int code = -1, status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid != child)
			continue;
		code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	}
	return code;
}

int main(int argc, char **argv) {
	sigset_t all, before;
	pid_t child;

	argv++;
	if (argc > 1 && strcmp(argv[0], "--") == 0)
		argv++;
	if (argv[0] == NULL) {
		fputs("usage: sampan-init [--] PROGRAM [ARGUMENT...]\n", stderr);
		return 2;
	}
	sigfillset(&all);
	for (size_t i = 0; i < sizeof own / sizeof *own; i++)
		sigdelset(&all, own[i]);
	if (sigprocmask(SIG_SETMASK, &all, &before) < 0)
		fail("signals");
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0)
		run(argv, &before);
	for (;;) {
		int sig, code;
		if (sigwait(&all, &sig) != 0)
			continue;
		if (sig != SIGCHLD) {
			kill(child, sig); // gone already: SIGCHLD tells
			continue;
		}
		if ((code = reap(child)) >= 0)
			return code;
	}
}
