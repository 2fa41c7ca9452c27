"""Throw-away accounts of this machine, and a sudo rule for them. For root only; everything is taken away again.

No pytest in it. Whoever is left running under such an account is ended at the end, and reported.
"""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from runner_process import is_running, wait_until

_LOCK = Path("/tmp/cronium-test-accounts.lock")
_SUDOERS = Path("/etc/sudoers.d")


class Account:
    """An account with a home directory of its own."""

    def __init__(self, name: str) -> None:
        entry = pwd.getpwnam(name)
        self.name = name
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.home = Path(entry.pw_dir)
        self.state = self.home / ".local/state/cronium-runner"
        self.installed = self.home / ".local/lib/cronium-runner"

    @property
    def popen(self) -> dict[str, object]:
        """Popen's arguments to start something as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": os.getgrouplist(self.name, self.gid)}

    def processes(self) -> list[int]:
        """Every living process of the account."""
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and os.stat(f"/proc/{name}").st_uid == self.uid and is_running(int(name)):
                    found.append(int(name))
        return found

    def give(self, path: Path, content: bytes | str, mode: int = 0o644) -> Path:
        """A file that belongs to the account."""
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.chown(path, self.uid, self.gid)
        path.chmod(mode)
        return path

    def execution(self, execution_id: str) -> Path:
        """The directory of one of its executions."""
        return self.state / "executions" / execution_id

    def executions(self) -> list[str]:
        """Everything in executions/, temporary names included."""
        folder = self.state / "executions"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def wait_nothing_left(self) -> None:
        """Waits until no process of the account is left, which takes a moment after the result."""
        wait_until(lambda: not self.processes(), f"the processes of {self.name} to end", 8)


@contextlib.contextmanager
def throw_away_account(*options: str) -> Iterator[Account]:
    """A new account; `options` are useradd's."""
    name = f"crt{os.urandom(4).hex()}"
    with _locked():
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", *options, name], check=True)
    account = Account(name)
    try:
        yield account
        account.wait_nothing_left()
    finally:
        for pid in account.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not account.processes(), f"{name} to be gone")
        with _locked():
            subprocess.run(["userdel", "--remove", name], check=True, stderr=subprocess.DEVNULL)
        for parent in ("/var/tmp", "/dev/shm", "/tmp"):
            shutil.rmtree(f"{parent}/cronium-runner-{account.uid}", ignore_errors=True)


@contextlib.contextmanager
def sudo_rule(*lines: str) -> Iterator[None]:
    """Rules in /etc/sudoers.d, checked with visudo before they count."""
    name = f"cronium-test-{os.urandom(4).hex()}"
    written = Path("/tmp") / name
    with written.open("x") as file:
        file.write("".join(f"{line}\n" for line in lines))
    written.chmod(0o440)
    try:
        subprocess.run(["visudo", "--check", "--quiet", f"--file={written}"], check=True)
        shutil.copy(written, _SUDOERS / name)
        yield
    finally:
        written.unlink()
        (_SUDOERS / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
