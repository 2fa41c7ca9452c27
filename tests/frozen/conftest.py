"""What the tests of the binary share."""

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import host_roots

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def binary() -> Path:
    """The runner as scripts/build makes it."""
    named = os.environ.get("CRONIUM_TEST_BINARY")
    found = [Path(named)] if named else sorted((ROOT / "dist").glob(f"cronium-runner-*-linux-{os.uname().machine}"))
    if not found:
        pytest.skip("there is no runner binary in dist/; scripts/build makes it")
    return found[-1]


@pytest.fixture
def aarch64_root(tmp_path: Path) -> Path:
    """A root directory of a host that says it is aarch64: busybox and a shell of this machine's, two devices, /root.

    Where aarch64's own programs are wanted, Debian's archive is needed: see tests/host_roots.py.
    """
    if not list((ROOT / "dist").glob("cronium-runner-*-linux-aarch64")):
        pytest.skip("there is no runner binary for aarch64 in dist/; scripts/build makes it where it has the packages")
    made = tmp_path / "root"
    made.mkdir(mode=0o755)
    try:
        host_roots.empty(made)
    except host_roots.UnavailableError as error:
        pytest.skip(str(error))
    uname = made / "bin" / "uname"
    uname.unlink()
    uname.write_text('#!/bin/sh\nbusybox uname "$@" | busybox sed "s/x86_64/aarch64/"\n')
    uname.chmod(0o755)
    (made / "bin" / "sh").unlink()  # busybox's takes its own uname
    for path in with_libraries("/bin/sh"):
        (made / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, made / path.lstrip("/"))
    shell = made / pwd.getpwuid(os.geteuid()).pw_shell.lstrip("/")
    if not shell.exists():  # that of the account on this machine, which sshd goes by
        shell.parent.mkdir(parents=True, exist_ok=True)
        shell.write_text('#!/bin/sh\nexec sh "$@"\n')
        shell.chmod(0o755)
    return made


def with_libraries(program: str) -> list[str]:
    """The paths of a program, its dynamic linker and its libraries."""
    shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [program, *re.findall(r"(/\S+) \(0x", shown)]
