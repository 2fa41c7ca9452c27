"""Hosts for the binary: root directories with little in them, and kernels that lack calls. What works on each.

`scripts/portable-hosts` prints the table; tests/frozen/test_portable_hosts.py goes through the rows that need nothing
installed, tests/faults/test_portable_hosts.py through those of other distributions as well.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

APP: Final = 4242
PATIENCE: Final = 240
"""Seconds for one command: strace stops every process at each call that is refused."""

CALLS: Final = (
    "pidfd_open", "pidfd_send_signal", "close_range", "clone3", "memfd_create", "getrandom", "statx", "openat2",
    "renameat2", "rseq",
)  # fmt: skip
"""System calls that older kernels lack, or that the filters of container runtimes refuse."""

JOBS: Final = {
    "sh": """#!/bin/sh
cronium.setVariable COLOUR blue
cronium.output "{\\"name\\": \\"$(cronium.input name)\\", \\"colour\\": \\"$(cronium.getVariable COLOUR)\\"}"
exit 3
""",
    "py": """#!/usr/bin/env python3
import sys
cronium.setVariable("COLOUR", "blue")
cronium.output({"name": cronium.input()["name"], "colour": cronium.getVariable("COLOUR")})
sys.exit(3)
""",
    "js": """#!/usr/bin/env node
cronium.setVariable("COLOUR", "blue")
cronium.output({name: cronium.input().name, colour: cronium.getVariable("COLOUR")})
process.exitCode = 3
""",
}
PROGRAMS: Final = {"sh": "sh", "py": "python3", "js": "node"}
COLUMNS: Final = ("version", "run: sh", "run: python", "run: node", "agent", "run-as", "doctor")
WORKS: Final = "works"
ABSENT: Final = "–"
"""In a cell: there is no such interpreter, or no account to run as."""


class Row(NamedTuple):
    """One host. `prepare` fills a new root directory, or is None for this machine's own; `words` stand in front of the
    runner's; `proc`: whether /proc is mounted; `expected`: parts of what cells say that cannot work there."""

    name: str
    prepare: Callable[[Path], None] | None = None
    words: tuple[str, ...] = ()
    environment: dict[str, str] = {}  # noqa: RUF012 - of a NamedTuple, and never changed
    proc: bool = True
    expected: dict[str, str] = {}  # noqa: RUF012 - as above

    def is_as_expected(self, column: str, seen: str) -> bool:
        """Whether a cell is right."""
        wanted = self.expected.get(column)
        return seen in (WORKS, ABSENT) if wanted is None else wanted in seen


class Machine:
    """A row's host, with the runner on it."""

    def __init__(self, row: Row, folder: Path, binary: Path) -> None:
        self._row = row
        self.root = folder / "root" if row.prepare else Path("/")
        self._at = "" if row.prepare else str(folder)
        if row.prepare:
            self.root.mkdir()
            self.root.chmod(0o755)
            row.prepare(self.root)
            (self.root / "proc").mkdir(exist_ok=True)
        place = self.root / self._at.lstrip("/") / "put"
        place.mkdir()
        shutil.copy(binary, place / "runner")
        for suffix, text in JOBS.items():
            (place / f"job.{suffix}").write_text(text)
        for path in (place, *place.iterdir()):
            path.chmod(0o755)

    def start(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Runs words of which the first is `runner`, in the host's root directory, as root."""
        put = f"{self._at}/put"
        given = [f"{put}/{word}" if word.startswith(("runner", "job.")) else word for word in words]
        places = {"CRONIUM_INSTALL_DIR": f"{self._at}/installed", "CRONIUM_STATE_DIR": f"{self._at}/state"}
        variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", **places, **self._row.environment}
        command = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), *self._row.words]
        if self._row.prepare:
            mount = f"mount -t proc proc '{self.root}/proc' && " if self._row.proc else ""
            entering = ["unshare", "-m", "sh", "-c", f'{mount}exec "$@"', "sh"]
            command = [*entering, *command, str(shutil.which("chroot")), str(self.root)]
        return subprocess.run(
            [*command, *given], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )

    def has(self, program: str) -> bool:
        """Whether an interpreter is there."""
        folders = ("usr/local/bin", "usr/bin", "bin")
        return any(os.path.lexists(self.root / folder / program) for folder in folders)

    def has_account(self) -> bool:
        """Whether there is the account that jobs are run as."""
        accounts = self.root / "etc" / "passwd"
        return accounts.exists() and f"app:x:{APP}:" in accounts.read_text()


def cells(machine: Machine) -> Iterator[tuple[str, str]]:
    """Column and what is seen there: WORKS, ABSENT, or what went wrong."""
    yield "version", verdict(machine.start("runner", "version"))
    for suffix, name in zip(JOBS, COLUMNS[1:4], strict=True):
        yield name, job(machine, suffix) if machine.has(PROGRAMS[suffix]) else ABSENT
    agent = machine.start("runner", "agent")
    yield "agent", verdict(agent) if b"cronium-agent" in agent.stdout else f"no greeting: {shown(agent)}"
    yield "run-as", job(machine, "sh", "--run-as", "app") if machine.has_account() else ABSENT
    yield "doctor", diagnosis(machine.start("runner", "doctor"))


def job(machine: Machine, suffix: str, *options: str) -> str:
    """A job with input, output and a variable, ended by a status of its own."""
    done = machine.start("runner", "run", f"job.{suffix}", "--json", "--input", '{"name": "Ada"}', *options)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return shown(done)
    if (done.returncode, result["output"], result["variables"]) == (
        3,
        {"name": "Ada", "colour": "blue"},
        {"COLOUR": "blue"},
    ):
        return WORKS
    error = result["error"]
    return (
        f"{result['state']}: {error['message']} [{error['code']}]"
        if error
        else f"{result['state']}: {result['output']}"
    )


def verdict(done: subprocess.CompletedProcess[bytes]) -> str:
    """WORKS for exit status 0."""
    return WORKS if done.returncode == 0 else shown(done)


def diagnosis(done: subprocess.CompletedProcess[bytes]) -> str:
    """WORKS, or what doctor finds bad."""
    bad = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("bad")]
    return verdict(done) if not bad else "; ".join(" ".join(line.split()) for line in bad)


def shown(done: subprocess.CompletedProcess[bytes]) -> str:
    """Exit status and last words."""
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or [""]
    return f"status {done.returncode}: {said[-1]}"


def empty(root: Path) -> None:
    """A static busybox, two devices and an account; no library, no /tmp."""
    (root / "bin").mkdir()
    shutil.copy(str(shutil.which("busybox")), root / "bin" / "busybox")
    (root / "usr").mkdir()
    (root / "usr" / "bin").symlink_to("../bin")
    applets = subprocess.run(["chroot", root, "/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for name in applets.stdout.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "dev").mkdir()
    for name, minor in (("null", 3), ("urandom", 9)):  # the other: for kernels without getrandom
        os.mknod(root / "dev" / name, 0o020666, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    add_account(root)


def add_account(root: Path) -> None:
    """Accounts root and app, with homes."""
    (root / "etc").mkdir(exist_ok=True)
    for name, line in (("passwd", f"app:x:{APP}:{APP}::/home/app:/bin/sh"), ("group", f"app:x:{APP}:")):
        there = (root / "etc" / name).read_text() if (root / "etc" / name).exists() else ""
        there = there or ("root:x:0:0::/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
        (root / "etc" / name).write_text(f"{there}{line}\n")
    (root / "root").mkdir(exist_ok=True)
    (root / "home" / "app").mkdir(parents=True)
    os.chown(root / "home" / "app", APP, APP)


def without_accounts(root: Path) -> None:
    """As an image that holds one program."""
    empty(root)
    shutil.rmtree(root / "etc")


def distribution(name: str, url: str | None = None) -> Callable[[Path], None]:
    """A root directory by debootstrap, with Python, Node and sudo where they are to be had."""

    def prepare(root: Path) -> None:
        program = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin")
        words = [str(program), "--variant=minbase", "--include=python3-minimal,nodejs,sudo", name, str(root)]
        subprocess.run([*words, *([url] if url else [])], check=True, capture_output=True)
        add_account(root)

    return prepare


def without(error: str, *calls: str) -> tuple[str, ...]:
    """Words that have the kernel answer `error` to system calls."""
    named = ",".join(calls)
    return ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={named}", "-e", f"inject={named}:error={error}")


BOUNDED: Final = (
    Row("root directory with a static busybox alone", empty),
    Row("the same without /proc", empty, proc=False,
        expected={"run-as": "/proc is not mounted", "doctor": "/proc is not mounted"}),
    Row("the same without /etc/passwd", without_accounts),
    Row("umask 000", empty, ("sh", "-c", 'umask 000; exec "$@"', "sh")),
    Row("umask 0777", empty, ("sh", "-c", 'umask 0777; exec "$@"', "sh")),
    Row("LD_PRELOAD and LD_LIBRARY_PATH of what is not there", empty, (),
        {"LD_LIBRARY_PATH": "/nowhere", "LD_PRELOAD": "/nowhere.so"}),
    Row("kernel without " + ", ".join(CALLS) + " (ENOSYS)", empty, without("ENOSYS", *CALLS)),
    Row("filter that refuses all of them but getrandom (EPERM)", empty,
        without("EPERM", *(call for call in CALLS if call != "getrandom")), expected={"run-as": "may refuse clone3"}),
)  # fmt: skip
"""What needs a static busybox, strace and root."""

REFUSED: Final = {("clone3", "EPERM"): {"run-as": "may refuse clone3"}}
"""What one sentence is all that can be had for: glibc tries no other call than clone3 when that is not permitted."""

KERNELS: Final = tuple(
    Row(f"kernel without {call} ({error})", empty, without(error, call), expected=REFUSED.get((call, error), {}))
    for call in CALLS
    for error in ("ENOSYS", "EPERM")
)
DISTRIBUTIONS: Final = tuple(
    Row(f"Debian {version} ({name})", distribution(name))
    for version, name in (("11", "bullseye"), ("12", "bookworm"), ("13", "trixie"))
)
