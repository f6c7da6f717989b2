#!/bin/sh
# Runs tests/unit/helper on each Python that a host may have and that is found here: in PATH, or installed by pyenv.
set -eu

cd "$(dirname "$0")/.."
versions=
pyenv=$(pyenv root 2>/dev/null || true)
for minor in 8 9 10 11 12 13 14; do
	for python in "python3.$minor" "$pyenv"/versions/3."$minor"*/bin/python3; do
		"$python" -c "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null || continue
		environment=.cache/unit/3.$minor
		# The stamp holds the lock file: a changed one builds the environment anew.
		if ! cmp -s requirements-unit.txt "$environment/requirements"; then
			rm -rf "$environment"
			"$python" -m venv "$environment"
			"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
				--require-hashes --requirement requirements-unit.txt
			cp requirements-unit.txt "$environment/requirements"
		fi
		versions="$versions 3.$minor"
		break
	done
done
# As many at once as there are processors. What each says is shown when it has ended, in one piece.
# shellcheck disable=SC2016
echo "$versions" | xargs -n 1 -P "$(nproc)" sh -c '
	status=0
	output=$(".cache/unit/$0/bin/python" -m pytest -q tests/unit/helper 2>&1) || status=$?
	printf "Python %s:\n%s\n" "$0" "$output"
	exit "$status"
'
echo "The unit tests of the helper passed on Python$versions"
