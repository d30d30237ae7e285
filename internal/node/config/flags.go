package config

// Flag is a flag of the command line for a key of the configuration file that has no other.
type Flag struct {
	Name  string // and a letter, behind a comma
	Key   string
	Kind  string // bool, int, string, or list for one that can be given several times
	Usage string
}

// Flags are those of the keys that sampand knows no better way to set.
func Flags() []Flag {
	return []Flag{
		{"add-runtime", "runtimes", "list", "no effect: there is one runtime"},
		{"authorization-plugin", "authorization-plugins", "list", "cannot be had: there are no plugins"},
		{"containerd", "containerd", "string", "no effect: no containerd runs"},
		{"containerd-namespace", "containerd-namespace", "string", "no effect: no containerd runs"},
		{"containerd-plugins-namespace", "containerd-plugin-namespace", "string", "no effect: no containerd runs"},
		{"cri-containerd", "cri-containerd", "bool", "cannot be had: no containerd runs"},
		{"cpu-rt-period", "cpu-rt-period", "int", "cannot be had: containers have a flag of that name"},
		{"cpu-rt-runtime", "cpu-rt-runtime", "int", "cannot be had: containers have a flag of that name"},
		{"default-cgroupns-mode", "default-cgroupns-mode", "string", `cgroup namespace of containers that choose none: "host" or "private"`},
		{"default-ipc-mode", "default-ipc-mode", "string", `IPC namespace of containers that choose none: "shareable" or "private"`},
		{"default-runtime", "default-runtime", "string", "runc, the only one"},
		{"default-shm-size", "default-shm-size", "string", "size of /dev/shm of containers that choose none"},
		{"default-stop-timeout", "default-stop-timeout", "int", "seconds that containers have to end when they are stopped"},
		{"default-ulimit", "default-ulimits", "list", "NAME=SOFT[:HARD] limit of containers that do not set it"},
		{"exec-opt", "exec-opts", "list", "no effect"},
		{"experimental", "experimental", "bool", "no effect"},
		{"feature", "features", "list", "no effect"},
		{"init", "init", "bool", "run an init in containers that do not choose"},
		{"live-restore", "live-restore", "bool", "always so"},
		{"max-concurrent-downloads", "max-concurrent-downloads", "int", "layers that a pull fetches at once (default 3)"},
		{"max-concurrent-uploads", "max-concurrent-uploads", "int", "layers that a push sends at once (default 5)"},
		{"max-download-attempts", "max-download-attempts", "int", "attempts at a layer (default 5)"},
		{"network-control-plane-mtu", "network-control-plane-mtu", "int", "no effect"},
		{"network-diagnostic-port", "network-diagnostic-port", "int", "no effect"},
		{"no-new-privileges", "no-new-privileges", "bool", "no new privileges for containers that do not choose"},
		{"nri-opts", "nri-opts", "string", "no effect: there are no NRI plugins"},
		{"raw-logs", "raw-logs", "bool", "no effect: logs have no colours"},
		{"rootless", "rootless", "bool", "cannot be had"},
		{"seccomp-profile", "seccomp-profile", "string", `file with the seccomp profile of containers that choose none, or "unconfined"`},
		{"selinux-enabled", "selinux-enabled", "bool", "cannot be had"},
		{"shutdown-timeout", "shutdown-timeout", "int", "no effect: containers outlive the daemon"},
		{"storage-driver,s", "storage-driver", "string", "overlay2, the only one"},
		{"storage-opt", "storage-opts", "list", "no effect"},
		{"swarm-default-advertise-addr", "swarm-default-advertise-addr", "string", "address or interface that a cluster is told of this host if nobody names another"},
		{"tls", "tls", "bool", "the same as --tlsverify"},
		{"userland-proxy-path", "userland-proxy-path", "string", "no effect"},
	}
}
