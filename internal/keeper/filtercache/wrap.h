#define FILTERCACHE_MAGIC "sampanF" // eight bytes with the zero, at the beginning of the file

// filtercache_use looks descriptions up in what fd holds from now on, and puts the null device in fd's place. If fd is not
// a file that a keeper sealed, nothing changes. It returns 0 or, when fd could not be replaced, an error number.
int filtercache_use(int fd);

// filtercache_learn writes to fd each description that is compiled from now on with the program made of it, as an entry,
// and lets the compilation fail with ECANCELED, so that nothing is installed.
void filtercache_learn(int fd);
