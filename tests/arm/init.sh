#!/bin/sh
# The first program of the machine: runs the tests, says how they ended, and turns the machine off.
set -eu
PATH=/usr/sbin:/usr/bin
export PATH
if [ ! -e /moved ]; then
	mkdir -p /dev /mnt /proc /run /sys /tmp
	# The initial RAM disk is no mount that can be left, which is what starts a container. So everything goes into another one.
	mount -t tmpfs -o size=75% tmpfs /mnt
	for entry in /*; do
		[ "$entry" = /mnt ] || cp -a "$entry" /mnt/
	done
	touch /mnt/moved
	exec busybox switch_root /mnt /init
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ip link set lo up
exec </dev/console >/dev/console 2>&1
cd /project
uname -srm
status=0
python3 -B -m pytest --color=no -v tests/arm || status=$?
# shellcheck disable=SC2046 # the words are wanted
python3 -B -m pytest --color=no -q $(cat /modules) || status=$?
echo "The tests have ended with status $status."
echo o >/proc/sysrq-trigger
sleep 60
