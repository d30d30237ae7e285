// Package config is what can be set about a daemon: dockerd's flags and keys of its configuration file, what each of them
// does or why it has no effect here, and what a reload applies. It knows nothing of how a host runs by it.
package config
