"""Root directories of Debian, made of its packages: what the images of most programs are made of."""

from __future__ import annotations

from pathlib import Path

from support import lab

# A release that is not that of this machine: what this machine has does not help.
SUITE = "trixie" if "bookworm" in Path("/etc/os-release").read_text() else "bookworm"
CURL_ONLY = ("coreutils", "curl", "dash", "zstd")


def make_root(target: Path, *packages: str) -> Path:
    """Unpacks packages, and what they need, into a directory or an archive, as the name says; runs no script of theirs."""
    words = ("mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--aptopt=APT::Install-Recommends false")
    lab.command(*words, f"--include=base-files,{','.join(packages)}", SUITE, target)
    return target


def curl_only() -> Path:
    """The archive of a root with curl, which is made once for all tests of a run."""
    archive = lab.DIRECTORY / "curl-only.tar"
    return archive if archive.exists() else make_root(archive, *CURL_ONLY)
