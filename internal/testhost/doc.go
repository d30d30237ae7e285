// Package testhost makes hosts for tests, the demo and measurements on one machine: each is a network namespace with an
// address of its own, joined to a switch without a way out, running a real sampand with its own folders. Hosts can be
// cut off, healed, and killed; what they printed is kept; and a leak checker compares the machine before and after.
//
// Everything is made below one folder and in namespaces of its own: the machine's own interfaces, routes and firewall
// are never touched. It needs root.
package testhost
