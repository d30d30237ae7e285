#!/bin/sh
# The first program of the virtual machine: what a boot does before anybody logs in (cgroup version 2 alone, as systemd
# mounts it, unless the command line asks for version 1), then the commands that the command line carries, then the end.
export PATH=/usr/local/bin:/usr/bin:/bin:/sbin HOME=/root

mount -t proc proc /proc
mount -o remount,rw /
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o mode=755 run /run
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security 2>/dev/null
mount --make-rshared /
for word in $(cat /proc/cmdline); do
	case $word in
	vm.cgroup=*) cgroup=${word#*=} ;;
	vm.commands=*) commands=${word#*=} ;;
	esac
done
case $cgroup in
1)
	mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
	for c in cpuset cpu cpuacct blkio memory devices freezer pids; do
		mkdir -p "/sys/fs/cgroup/$c" && mount -t cgroup -o "$c" "$c" "/sys/fs/cgroup/$c"
	done
	mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
	;;
*) mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup ;;
esac
echo dockremap:100000:65536 | tee /etc/subuid > /etc/subgid
hostname vm
ip link set lo up
echo "$commands" | base64 -d > /run/commands
echo "VM-READY $(uname -r)"
sh /run/commands
echo "VM-EXIT $?"
sync
poweroff -f
