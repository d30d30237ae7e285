#!/bin/busybox sh
# The first program of the initial RAM disk: loads what the disk needs and goes on from there. A root that libcontainer
# can pivot away from is never the RAM disk itself.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
while read -r module; do
	/bin/busybox insmod "/modules/$module" || echo "module $module did not load"
done < /modules/order
/bin/busybox umount /proc
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || /bin/busybox poweroff -f
exec /bin/busybox switch_root /root /init
