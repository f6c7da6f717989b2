#!/bin/sh
# Runs what depends on Ansible with the oldest ansible-core that is supported, which is the newest for Python 3.11, and with
# that for the newest Python found: in PATH, or installed by pyenv.
set -eu

cd "$(dirname "$0")/.."
pyenv=$(pyenv root 2>/dev/null || true)

find_python() {
	for minor in "$@"; do
		for python in "python3.$minor" "$pyenv"/versions/3."$minor".*/bin/python3; do
			if "$python" -c "import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null; then
				echo "$python"
				return
			fi
		done
	done
	echo "$0: found no Python of these: $*" | sed 's/ \([0-9][0-9]\)/ 3.\1/g' >&2
	return 1
}

oldest=$(find_python 11)
newest=$(find_python 14 13 12)
passed=
for python in "$oldest" "$newest"; do
	version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	venv=.cache/ansible/$version
	mkdir -p .cache/ansible
	echo "Python $version:"
	make --no-print-directory PYTHON="$python" VENV="$venv" lint-ansible unit-ansible test-collection molecule
	passed="$passed, $("$venv/bin/ansible" --version | sed -n '1s/ansible \[core \(.*\)\]/ansible-core \1/p') on Python $version"
done
echo "make test-ansible passed with${passed#,}"
