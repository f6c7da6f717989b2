#!/bin/sh
# Runs the tests of the helper and of the role's modules in Debian's unstable release: it has the newest Python, the newest
# ansible-core and the kernel's newest headers, long before a host has them. As root, in a directory of its own.
set -eu

cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
command -v mmdebstrap >/dev/null || { echo "$0: install mmdebstrap" >&2; exit 1; }
if [ ! -e .cache/sid.tar ]; then
	mkdir -p .cache
	# A mirror that stands still, a snapshot, is as good.
	mmdebstrap --quiet --format=tar --variant=apt --aptopt='Acquire::Check-Valid-Until "false"' \
		--include=ansible-core,linux-libc-dev,mount,python3.14,python3-pytest sid .cache/sid.new
	mv .cache/sid.new .cache/sid.tar
fi
root=$(mktemp -d)
# The mounts are gone with their namespace.
trap 'rm -rf --one-file-system "$root"' EXIT
trap 'exit 130' HUP INT TERM
tar --extract --file .cache/sid.tar --directory "$root" --exclude './dev/*'
mkdir -p "$root/project"
# shellcheck disable=SC2016 # the inner shell expands
unshare --mount --pid --fork --propagation private sh -euc '
	# A mount of its own, so that the tests can make private ones.
	mount --bind "$1" "$1"
	mount -t proc proc "$1/proc"
	mount -t tmpfs tmpfs "$1/tmp"
	mount --rbind /dev "$1/dev"
	mount --bind . "$1/project"
	mount -o remount,bind,ro "$1/project"
	exec chroot "$1" env -C /project PYTHONDONTWRITEBYTECODE=1 python3.14 -m pytest -q \
		tests/unit/helper tests/unit/test_module_*.py tests/unit/test_role_rollout.py
' sh "$root"
echo 'The unit tests passed in Debian sid, with:'
chroot "$root" dpkg-query --show ansible-core linux-libc-dev python3.14
