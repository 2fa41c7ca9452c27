"""Runs a command in a root directory of another architecture: `python tests/emulation.py ROOT [OPTION] WORDS…`.

With `--no-proc` the root directory has no /proc; with `--beside` the command runs outside of it and finds it at BESIDE.
qemu-user executes the programs. The kernel finds it by a binfmt_misc of a user namespace's own, which Linux has since
6.7: nothing is registered on the machine itself. Programs of this machine's architecture run there as well.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

QEMU: Final = "qemu-aarch64-static"
MAGIC: Final = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK: Final = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
"""Of 64-bit little-endian ELF files for aarch64, executables and libraries."""
NEW_NAMESPACES: Final = 0x10000000 | 0x00020000
"""CLONE_NEWUSER, CLONE_NEWNS."""
BIND: Final = 4096 | 16384
"""MS_BIND, MS_REC."""
IDS: Final = "0 0 65536\n"


BESIDE: Final = "/mnt"
"""A directory that belongs to root, as all above it, which sshd demands of what it changes its root directory to."""


def command(root: Path, *words: str, option: str | None = None) -> list[str]:
    """What runs words in `root`, or beside it, as root."""
    return [sys.executable, "-I", __file__, str(root), *([option] if option else []), *words]


def missing() -> str | None:
    """Why nothing can be emulated here, if so. For the reason of a skip."""
    if os.geteuid() != 0:
        return "needs root, to have another root directory"
    if shutil.which(QEMU) is None:
        return "qemu-user-static is not installed"
    done = subprocess.run(command(Path("/"), "true"), capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else "a user namespace has no binfmt_misc of its own (before Linux 6.7)"


def main(root: str, *words: str) -> None:
    """Becomes the command, in namespaces of its own. Status 1 when they cannot be had."""
    option = words[0] if words[0].startswith("--") else ""
    enter()
    if option != "--no-proc":
        Path(root, "proc").mkdir(exist_ok=True)
        mount("/proc", f"{root}/proc", None, BIND)
    if option == "--beside":
        mount(root, BESIDE, None, BIND)
    else:
        os.chroot(root)
        os.chdir("/")
    words = words[1:] if option else words
    os.execvp(words[0], words)


def enter() -> None:
    """Enters new namespaces of users and mounts, with the ids of this one, and has qemu execute programs there."""
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:  # who maps ids must be outside
        os.close(write)
        os.read(read, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}/{name}").write_text(IDS)
        os._exit(0)
    os.close(read)
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NAMESPACES) != 0:
        raise SystemExit(f"unshare: {os.strerror(ctypes.get_errno())}")
    os.close(write)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit("the ids of the user namespace could not be mapped")
    mount("binfmt_misc", "/proc/sys/fs/binfmt_misc", "binfmt_misc")
    rule = f":cronium:M::{MAGIC}:{MASK}:{shutil.which(QEMU)}:OPF"
    Path("/proc/sys/fs/binfmt_misc/register").write_text(rule)


def mount(source: str, place: str, kind: str | None, flags: int = 0) -> None:
    """As mount(2)."""
    encoded = None if kind is None else kind.encode()
    if ctypes.CDLL(None, use_errno=True).mount(source.encode(), place.encode(), encoded, flags, None) != 0:
        raise SystemExit(f"mount {place}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
