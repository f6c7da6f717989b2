#!/bin/sh
# Says what the demo and the tests do to this machine, and installs the Debian packages that are missing for them. With the word
# "vm" it does the same for the tests with virtual machines, with the word "arm" for that with another processor.
set -eu

PATH=$PATH:/usr/sbin:/sbin
root=
[ "$(id -u)" = 0 ] || root=sudo

missing() {
	! command -v "$1" >/dev/null 2>&1
}

has_python() {
	"$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

packages=
needed="busybox:busybox curl:curl debuginfod:debuginfod dockerd:docker.io gcc:gcc gdb:gdb git:git mmdebstrap:mmdebstrap openssl:openssl shellcheck:shellcheck zstd:zstd"
client=docker
if [ "${1-}" = vm ]; then
	needed="busybox:busybox gcc:gcc git:git mke2fs:e2fsprogs mmdebstrap:mmdebstrap qemu-system-x86_64:qemu-system-x86 ssh:openssh-client"
	client=ssh
fi
if [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then packages=" debian-archive-keyring"; fi
if [ "${1-}" = arm ]; then
	needed="busybox:busybox git:git mmdebstrap:mmdebstrap qemu-system-aarch64:qemu-system-arm"
	needed="$needed aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu arm-linux-gnueabihf-gcc:gcc-arm-linux-gnueabihf"
	client=git
	if [ ! -e /usr/aarch64-linux-gnu/lib/libc.a ]; then packages="$packages libc6-dev-arm64-cross"; fi
	if [ ! -e /usr/arm-linux-gnueabihf/lib/libc.a ]; then packages="$packages libc6-dev-armhf-cross"; fi
fi
for pair in $needed; do
	if missing "${pair%:*}"; then packages="$packages ${pair#*:}"; fi
done
if [ "${1-}" != arm ] && { missing gcc || [ ! -e "$(gcc -print-file-name=libc.a)" ]; }; then packages="$packages libc6-dev"; fi
python=
for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
	if has_python "$candidate"; then python=$candidate; fi
done
if [ -z "$python" ]; then
	if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
		packages="$packages python3-venv"
	else
		packages="$packages python3.11-venv"
	fi
fi

if [ "${1-}" = vm ]; then
	cat <<'TEXT'
What this does to this machine, as root:
  - builds virtual machines from Debian's packages, and keeps them in .cache/machines, 0.7 to 0.9 GiB each;
  - runs one at a time, or three as a fleet, each with 1.3 GiB of memory, and 2 processors where KVM runs. A machine reaches
    nothing, and is reached on the loopback interface only. What it writes is thrown away.
None of them runs on at the end, not even after a failure or Ctrl-C. The kernel's settings of this machine are not touched.
TEXT
elif [ "${1-}" = arm ]; then
	cat <<'TEXT'
What this does to this machine, as root: it unpacks Debian's packages for arm64, keeps them in .cache/arm, 150 MiB, and runs an
emulated machine of them with 1.6 GiB of memory. That machine has no disk and no network. The kernel's settings of this machine
are not touched.
TEXT
else
	cat <<'TEXT'
What this does to this machine, as root:
  - sets kernel.core_pattern, kernel.core_pipe_limit and fs.suid_dumpable;
  - installs the helper: /opt/bin/docker_core_helper, /opt/lib/docker_core_helper, /etc/docker_core_helper.conf and
    /etc/sysctl.d/60-docker-core-helper.conf;
  - builds and runs containers without any network, in /var/lib/core-lab, by a Docker engine of its own unless one runs.
At the end, even after a failure or Ctrl-C, all of this is as it was before.
TEXT
fi

if [ -n "$packages" ] || missing "$client"; then
	if [ -n "$root" ] && missing sudo; then
		echo "$0: run this as root, or install sudo, to install:$packages $client" >&2
		exit 1
	fi
	$root apt-get update --quiet=2
	# Some Debian releases have the Docker client in a package of its own.
	if missing "$client" && [ "$client" = docker ]; then
		if apt-cache show docker-cli >/dev/null 2>&1; then client=docker-cli; else client=docker.io; fi
		packages="$packages $client"
	fi
	echo "Installing these Debian packages, which stay installed:$packages"
	# --no-remove: rather fail than replace a package that somebody chose, such as podman-docker.
	# shellcheck disable=SC2086 # the words are wanted
	$root env DEBIAN_FRONTEND=noninteractive \
		apt-get install --quiet=2 --yes --no-remove --no-install-recommends $packages >/dev/null
fi
