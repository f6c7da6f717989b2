"""What the engine is told when it starts a container of these tests, and what it gives a container by itself."""

from __future__ import annotations

UNCONFINED = ("--security-opt=seccomp=unconfined",)
ADMINISTRATOR = ("--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined")
# What --privileged would bring and the host need not have.
PRIVILEGED = (
    *("--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE", "--cap-add=SYS_CHROOT"),
    *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
)
TRACER = ("--cap-add=SYS_PTRACE",)
FALLBACK = "--env=DOCKERCOREHELPER_FALLBACK_CORE=1"
# Its delegate has to be ended.
ENDLESS = ("--env=ATTACK=never-ends", "--detach")
# There the delegate records what it is in its root directory, wherever that is: there is no volume.
IN_ROOT = "RECORD_DIRECTORY=/"
# What the engine gives a container, in the first 32 bits.
DEFAULT_CAPABILITIES = "a80425fb"
CAP_SYS_PTRACE = 19
