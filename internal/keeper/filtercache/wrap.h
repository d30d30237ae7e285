#define FILTERCACHE_MAGIC "sampanF" // eight bytes with the zero, at the beginning of the file

// filtercache_use looks descriptions up in what fd holds from now on, and puts the null device in fd's place. If fd is not
// a file that a keeper sealed, nothing changes. It returns 0 or, when fd could not be replaced, an error number.
int filtercache_use(int fd);

// filtercache_learn writes to fd each description that is compiled from now on with the program made of it, as an entry.
// The compilation fails then, with ECANCELED, so that nothing is installed; but with filtercache_trap it goes on.
void filtercache_learn(int fd);

// filtercache_trap lets this thread install no filter any more: the first that it tries to install is written to where
// filtercache_learn writes (its flags, its length in bytes, its instructions), and the process ends with success. It
// returns 0 or, where it does not know the processor or the kernel refuses, an error number.
int filtercache_trap(void);
