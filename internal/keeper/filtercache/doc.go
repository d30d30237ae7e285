// Package filtercache keeps what libseccomp makes of a seccomp profile, so that it is made once per profile and not once
// per start of a container.
//
// libcontainer's init compiles the profile of its container each time: some twenty milliseconds for Docker's default one,
// more than everything else that init does. It cannot be handed a compiled filter, so the cache sits one floor below,
// between libcontainer and libseccomp: the linker leads libseccomp's functions that describe a filter through this
// package (ld's --wrap). What is described is written down; at the end, the description is looked up, and the program
// that libseccomp itself once made of the very same description is given. Nothing here makes a program of its own.
//
// A keeper learns a profile after the first start with it, in a process made for that, and lays all it has learned into a
// sealed file in memory, which it gives to each init as the first of its extra files. An init reads there and cannot
// write: what is in it decides which system calls other containers may make. The first thing that an init does is to map
// the file and put the null device in its place, closed on exec, so that the container's program gets nothing.
//
// Those that are started without an init (package enter) get the whole filter, with what libcontainer puts in front of
// libseccomp's program: the process that compiles goes on as an init would, is kept from installing what it has made, and
// writes that down as well (filtercache_trap).
package filtercache

// limit is how many profiles are kept; the oldest goes first.
const limit = 16
