#!/bin/sh
# Runs molecule as root.
#
#   tests/molecule.sh                                the scenario "default" as a whole. It leaves nothing behind: molecule
#                                                    cleans up after a failure, but not after Ctrl-C
#   tests/molecule.sh SCENARIO ACTION [ARGUMENT...]  one action of a scenario, such as converge; the next one finds what it
#                                                    has left
set -eu

cd "$(dirname "$0")/.."
export HOME
# Not an option: login takes none.
export MOLECULE_COMMAND_BORDERS=false

whole() {
	HOME=$(mktemp -d)
	trap end_whole EXIT
	molecule test
}

end_whole() {
	status=$?
	trap '' HUP INT TERM
	[ "$status" = 0 ] || molecule cleanup
	rm -rf "$HOME"
	exit "$status"
}

piece() {
	scenario=$1
	action=$2
	shift 2
	# What molecule remembers is in HOME. It is true as long as the lab, or the machine, is there.
	if [ "$scenario" = vm ]; then
		machine=${VM_MACHINE:-trixie}
		# A short name, because the path of a Unix socket has at most 107 bytes.
		HOME=/var/lib/core-lab-vm/$machine
		VM_DIRECTORY=$HOME/machine
		export VM_DIRECTORY
		lab=$VM_DIRECTORY
		remark="The virtual machine $machine runs on. This ends it: make test-vm VM=$machine ARGS=destroy"
	else
		HOME=$PWD/.cache/molecule
		lab=/var/lib/core-lab
		remark="This machine is not yet as it was before. This gives it back: make molecule ARGS=cleanup"
	fi
	[ -e "$lab" ] || rm -rf "$HOME"
	mkdir -p "$HOME"
	trap end_piece EXIT
	molecule "$action" --scenario-name="$scenario" "$@"
}

end_piece() {
	status=$?
	trap '' HUP INT TERM
	if [ -e "$lab" ]; then
		echo "$remark"
	else
		rm -rf "$HOME"
		rmdir --ignore-fail-on-non-empty "${HOME%/*}"
	fi
	if [ -d .cache ]; then
		# The clone belongs to somebody who is not root, maybe, and wants to remove it.
		chown --reference=. .cache
		[ ! -d .cache/molecule ] || chown -R --reference=. .cache/molecule
	fi
	exit "$status"
}

trap 'exit 130' HUP INT TERM
if [ $# = 0 ]; then whole; else piece "$@"; fi
