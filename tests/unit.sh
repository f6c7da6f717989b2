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
		echo "Python 3.$minor:"
		"$environment/bin/python" -m pytest -q tests/unit/helper
		versions="$versions 3.$minor"
		break
	done
done
echo "The unit tests of the helper passed on Python$versions"
