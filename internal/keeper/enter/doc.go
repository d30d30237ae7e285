// Package enter starts a process in a container that runs: `docker exec`, health checks.
//
// It does what libcontainer's init does for such a process, in the same order, but in C before Go's runtime starts, from
// one message: starting Go, decoding the container's whole configuration and patching its seccomp filter take an init some
// five of the seven milliseconds of its life, and a host whose containers have health checks pays that all day long.
// libcontainer stays the judge: what is not plain here (a terminal, security labels, real-time scheduling, …) is not
// taken on, and any step that fails ends the process before it was the user's program; the caller then starts it by
// libcontainer, which succeeds or says why.
//
// The process begins as the keeper's own program (enter.c, by a constructor), out of a sealed memory file, and makes
// itself untraceable before it joins anything (CVE-2016-9962). It joins the container's namespaces by the pidfd of the
// container's first process, and makes a child there, whose parent is the keeper. With version 2 of cgroups that one begins in
// the container's group, and is the only process that does; with version 1 it waits until the keeper has put it into the
// groups. It joins the container's control group namespace, closes every descriptor but its streams (CVE-2024-21626), takes the user, the
// capabilities and the filter, makes sure that its working directory is inside, and becomes the program. Its end of the
// socket closes with that: an end of file is the word that all went well.
//
// The container may be hostile: from its birth on it can stop and kill the child, as it can what libcontainer's init starts,
// and one that may trace what root has can take it over. So the child is waited for with a bound, and what it says is doubted.
package enter
