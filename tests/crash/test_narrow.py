"""An image of 32 bits on a machine of 64: the faulting process and its delegate are i386 programs."""

from __future__ import annotations

import os
import re
import struct
import subprocess

import pytest
from support import lab
from support.containers import MakeCrash

SOURCE = lab.PROJECT / "tests/support/programs/narrow.c"
PROGRAM = lab.PROGRAMS / "narrow"
# Without a C library, which few machines have in 32 bits.
FLAGS = ("-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-O1", "-g")
ELF_CLASS_32, CORE, I386 = 1, 4, 3
# What the program writes into its memory before it crashes.
MARK = struct.pack("<4I", *(0x9E3779B9 * number & 0xFFFFFFFF for number in range(1, 5)))


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    """An image with a program of 32 bits that crashes, and the same as the delegate."""
    if os.uname().machine != "x86_64":
        pytest.skip(f"the program is made for i386, which {os.uname().machine} does not run")
    lab.command("gcc", *FLAGS, "-Wall", "-Wextra", "-Werror", "-o", PROGRAM, SOURCE)
    try:
        subprocess.run([PROGRAM], stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        pytest.skip(f"the kernel runs no programs of 32 bits: {error.strerror}")
    lab.import_image("narrow", {"usr/bin/crash": PROGRAM, "opt/bin/delegate": PROGRAM})


@pytest.mark.parametrize(
    "profile", [(), ("--security-opt=seccomp=unconfined",)], ids=["with a seccomp filter", "without"]
)
def test_a_delegate_of_32_bits_gets_the_core_of_a_process_of_32_bits(
    crash: MakeCrash, profile: tuple[str, ...]
) -> None:
    container = crash("die", image="narrow", options=profile)
    assert container.exit_status == 128 + 11
    told = container.log("delivered")
    (size,) = re.findall(r"delivered ([0-9]+) bytes", told)
    core = (container.records / "core").read_bytes()
    assert len(core) == int(size)
    kind, machine = struct.unpack_from("<2H", core, 16)
    assert (core[:5], kind, machine) == (b"\x7fELF" + bytes([ELF_CLASS_32]), CORE, I386)
    assert MARK in core
    assert "the_defect () at" in lab.read_by_gdb(container.records / "core", PROGRAM.name)
