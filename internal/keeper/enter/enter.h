#include <stdint.h>

// request is the head of the message by which a keeper says what to become; enter.go writes the same. Behind it come, each
// as long as it says: the groups (4 bytes each), the filter (8 bytes an instruction), and the texts, each with its zero
// byte at the end: the session keyring's name, the working directory, the arguments, the environment.
struct request {
	uint32_t magic, size; // size is that of all that follows the head
	uint32_t namespaces;  // CLONE_NEW… flags of those to join
	uint32_t flags;       // ENTER_…
	uint32_t uid, gid, umask;
	int32_t oom_score_adj;
	uint64_t bounding, effective, permitted, inheritable, ambient;
	uint32_t groups, filter_flags, filter, keyring, cwd, args, args_size, env, env_size, reserved;
};

#define ENTER_MAGIC 0x53616d65u
enum { ENTER_NO_NEW_PRIVS = 1, ENTER_UMASK = 2, ENTER_HOME = 4, ENTER_GROUP = 8 };

// report is what the process answers: first its ID, then nothing, or the step that failed with its error number.
struct report {
	int32_t step, value;
};
enum { REPORT_PID = 1, REPORT_FAILED };

const char *enter_home(char *text, uint32_t uid);
