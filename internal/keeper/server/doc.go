// Package server is what runs inside sampan-keeper: it makes containers with libcontainer, is their parent, moves what
// they print into their log files and to those attached, keeps their exit codes, and finds all of it again when it is
// started anew or replaced in place. It obeys one daemon over EXEC-ROOT/keeper.sock and knows nothing of images,
// networks or the cluster: a container comes to it as a finished OCI spec.
//
// What is on disk, all of it under EXEC-ROOT/keeper (gone with the boot, as the containers are):
//
//	lock              held while a keeper lives
//	containers/ID     libcontainer's state
//	io/ID             pipes, spools, the log's journal, and record.json: what there is to adopt, or how it ended
//	io/ID/exec/EXEC   the same for an exec
//	names.json        the newest name table
//
// # Output, byte for byte
//
// A process writes into a named FIFO that it holds open for reading too, so that a keeper that dies costs it neither a
// SIGPIPE nor a byte. The keeper splices from there to the end of a spool file, whose size is thereby exactly what was
// taken out of the pipe, and from the spool writes the log. A journal in shared memory says how far the log has come; a
// keeper killed at any instruction leaves enough for the next one to go on with neither a gap nor a byte twice.
//
// # Exits
//
// A container's first process is the keeper's child: it waits for its pidfd and reaps it. It is no subreaper: what a
// container in the host's PID namespace leaves behind goes to the host's first process, which reaps it, and no wait for
// any child can take an exit from libcontainer. A process adopted from a keeper that died is no child; its code comes
// from /proc while it is a zombie, then from its pidfd (Linux 6.15), else it is unknown and said to be.
package server
