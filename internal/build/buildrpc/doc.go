// Package buildrpc is what sampan-builder, the program that builds images, asks of the sampand that started it: to run
// the steps of builds as it runs any container. It is generated from build.proto; content, snapshots, leases and images
// go by containerd's own protocols on the same connection.
package buildrpc
