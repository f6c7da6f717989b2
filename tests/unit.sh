#!/bin/sh
# Runs tests/unit/helper on Pythons that a host may have and that are found here: in PATH, or installed by pyenv. These are the oldest,
# the newest, and the one that python3 is: what works on these works on those between. With the word "all" it takes all.
set -eu

cd "$(dirname "$0")/.."
pyenv=$(pyenv root 2>/dev/null || true)

# find_python MINOR: sets $python
find_python() {
	for python in "python3.$1" "$pyenv"/versions/3."$1"*/bin/python3; do
		! "$python" -c "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, $1))" 2>/dev/null || return 0
	done
	return 1
}

found=
for minor in 8 9 10 11 12 13 14; do
	! find_python "$minor" || found="$found $minor"
done
default=$(python3 -c 'import sys; print(sys.version_info[1])' 2>/dev/null || true)
versions=
for minor in $found; do
	case "${1-} $minor" in
	all* | " $default" | " ${found##* }") ;;
	*) [ -z "$versions" ] || continue ;;
	esac
	environment=.cache/unit/3.$minor
	# The stamp holds the lock file: a changed one builds the environment anew.
	if ! cmp -s requirements-unit.txt "$environment/requirements"; then
		rm -rf "$environment"
		find_python "$minor"
		"$python" -m venv "$environment"
		"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
			--require-hashes --requirement requirements-unit.txt
		cp requirements-unit.txt "$environment/requirements"
	fi
	versions="$versions 3.$minor"
done
# Two at once for each processor, since many tests wait. What each says is shown when it has ended, in one piece.
# shellcheck disable=SC2016
echo "$versions" | xargs -n 1 -P "$((2 * $(nproc)))" sh -c '
	status=0
	output=$(".cache/unit/$0/bin/python" -m pytest -q tests/unit/helper 2>&1) || status=$?
	printf "Python %s:\n%s\n" "$0" "$output"
	exit "$status"
'
echo "The unit tests of the helper passed on Python$versions"
