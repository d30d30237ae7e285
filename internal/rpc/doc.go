// Package rpc is what Sampan's hosts say to each other: the protocol (sampan.proto), how errors travel in it, which role
// may call which method, and how a node finds a manager that answers. It knows nothing of what the calls do.
package rpc
