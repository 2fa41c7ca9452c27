"""A private, real PostgreSQL for the tests: a cluster of its own in a temporary folder, reached by a unix socket only.

PostgreSQL refuses to run as root, so for root it runs as `nobody`. `stop` ends it, by pid, and removes the folder.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

READY_SECONDS = 60.0


def postgresql_folder() -> Path | None:
    """Where `initdb` and `postgres` are, or None when PostgreSQL isn't installed. Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


class PostgreSQL:
    """Started by the constructor. `create()` makes an empty database and gives its URL."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self._made = 0
        # Not below pytest's folder, which only its owner may enter; short, because socket paths have to be.
        self.folder = Path(tempfile.mkdtemp(prefix="cronium-pg-"))
        if os.geteuid() == 0:
            os.chown(self.folder, pwd.getpwnam("nobody").pw_uid, -1)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "cronium", "--auth=trust", "--encoding=UTF8", "-N")
        self._process = self._start()

    def create(self) -> str:
        """A new, empty database."""
        self._made += 1
        name = f"t{self._made}"
        self._run("createdb", "-h", str(self.folder), "-U", "cronium", name)
        return f"postgresql://cronium@/{name}?host={self.folder}"

    def stop(self) -> None:
        """Ends it and removes everything."""
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        self._process.wait(30)
        shutil.rmtree(self.folder)

    def _start(self) -> "subprocess.Popen[bytes]":
        # fsync off: nothing here outlives the tests.
        settings = ["listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off", "max_connections=60"]
        words = [word for setting in settings for word in ("-c", setting)]
        with open(self.folder / "log", "wb") as log:
            process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, **_as_ordinary_user(),
            )  # fmt: skip
        try:
            self._run("pg_isready", "-h", str(self.folder), "-t", "0", tries=int(READY_SECONDS / 0.05))
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _run(self, program: str, *words: str, tries: int = 1) -> None:
        for left in reversed(range(tries)):
            done = subprocess.run(
                [self.programs / program, *words], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True,
                check=False, timeout=READY_SECONDS, **_as_ordinary_user(),
            )  # fmt: skip
            if done.returncode == 0:
                return
            if left:
                with open(self.folder / "log", "rb") as log:
                    assert b"FATAL" not in log.read().replace(b"FATAL:  the database system is starting up", b"")
                time.sleep(0.05)
        raise AssertionError(f"{program}: {done.stderr.decode(errors='replace')}")


def _as_ordinary_user() -> dict[str, Any]:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    if os.geteuid() != 0:
        return {"env": environment}
    nobody = pwd.getpwnam("nobody")
    return {"env": environment, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
