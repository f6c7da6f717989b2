#!/bin/sh
# Runs molecule as root, and leaves nothing behind: molecule cleans up after a failure, but not after Ctrl-C.
set -eu

cd "$(dirname "$0")/.."
HOME=$(mktemp -d)
export HOME

finish() {
	status=$?
	trap '' HUP INT TERM
	[ "$status" = 0 ] || molecule cleanup --no-command-borders
	rm -rf "$HOME"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' HUP INT TERM

molecule test --no-command-borders
