"""Hosts for the binary: root directories of many kinds, containers, and kernels that lack calls. What works on each.

`scripts/portable-hosts` prints the table; tests/frozen/test_portable_hosts.py goes through the rows that need nothing
installed, tests/faults/test_portable_hosts.py through those of distributions and containers as well.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import emulation
import host_aarch64
import host_roots as roots
from host_container import Container
from host_roots import Prepare

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
    """One host.

    `prepare` fills a new root directory, or is None for this machine's own; `words` stand in front of the runner's;
    `environment`: an empty value unsets a variable; `proc`: whether /proc is mounted; `mounts`: shell commands run in
    the host's mount namespace with its root directory as $1; `uid`: who uses the runner; `account`: whom jobs are run
    as; `container`: whether it runs in one; `emulated`: whether its programs are aarch64's; `expected`: parts of what
    cells say that cannot work there.
    """

    name: str
    prepare: Prepare | None = None
    words: tuple[str, ...] = ()
    environment: dict[str, str] = {}  # noqa: RUF012 - of a NamedTuple, and never changed
    proc: bool = True
    expected: dict[str, str] = {}  # noqa: RUF012 - as above
    mounts: str = ":"
    uid: int = 0
    account: str = "app"
    container: bool = False
    emulated: bool = False

    def is_as_expected(self, column: str, seen: str) -> bool:
        """Whether a cell is right."""
        wanted = self.expected.get(column)
        return seen == ABSENT or (seen == WORKS if wanted is None else wanted in seen)


class Machine:
    """A row's host, with the runner on it. Raises roots.UnavailableError."""

    def __init__(self, row: Row, folder: Path, binary: Path) -> None:
        self.row = row
        self.root = folder / "root" if row.prepare else Path("/")
        self._at = "" if row.prepare else str(folder)
        if row.words[:1] == ("strace",):
            check_strace(row.words)
        if row.prepare:
            self.root.mkdir()
            self.root.chmod(0o755)
            row.prepare(self.root)
            (self.root / "proc").mkdir(exist_ok=True)
        place = self.root / self._at.lstrip("/") / "put"
        place.mkdir()
        shutil.copy(host_aarch64.binary(binary) if row.emulated else binary, place / "runner")
        for suffix, text in JOBS.items():
            (place / f"job.{suffix}").write_text(text)
        for path in (place, *place.iterdir()):
            path.chmod(0o755)
        self._container = Container(self.root, folder) if row.container else None

    def start(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Runs words, of which `runner` and `job.…` are files put there, in the host's root directory."""
        put = f"{self._at}/put"
        given = [f"{put}/{word}" if word.startswith(("runner", "job.")) else word for word in words]
        places = {"CRONIUM_INSTALL_DIR": f"{self._at}/installed", "CRONIUM_STATE_DIR": f"{self._at}/state"}
        variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", **places, **self.row.environment}
        variables = {name: value for name, value in variables.items() if value}
        if self._container is not None:
            command = self._container.words(variables)
        elif self.row.emulated:
            settings = [f"{name}={value}" for name, value in variables.items()]
            command = emulation.command(self.root, "/bin/busybox", "env", "-i", *settings)
        else:
            command = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), *self.row.words]
            if self.row.prepare:
                command = [*self._entering(), *command, *self._chroot()]
        return subprocess.run(
            [*command, *given], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )

    def _entering(self) -> list[str]:
        mount = 'mount -t proc proc "$1/proc" && ' if self.row.proc else ""
        return ["unshare", "-m", "sh", "-ec", f'{mount}{self.row.mounts}; shift; exec "$@"', "sh", str(self.root)]

    def _chroot(self) -> list[str]:
        who = [f"--userspec={self.row.uid}:{self.row.uid}"] if self.row.uid else []
        return [roots.tool("chroot"), *who, str(self.root)]

    def has(self, program: str) -> bool:
        """Whether an interpreter is there."""
        folders = ("usr/local/bin", "usr/bin", "bin")
        return any(os.path.lexists(self.root / folder / program) for folder in folders)

    def has_account(self) -> bool:
        """Whether there is the account that jobs are run as."""
        files = (self.root / folder / "passwd" for folder in ("etc", "var/lib/extrausers"))
        return any(file.exists() and f"{self.row.account}:x:" in file.read_text() for file in files)


def check_strace(words: tuple[str, ...]) -> None:
    """Raises roots.UnavailableError when strace is not here, or may not be used."""
    if subprocess.run([roots.tool("strace"), *words[1:], "true"], capture_output=True, check=False).returncode != 0:
        raise roots.UnavailableError("strace is not permitted")


def cells(machine: Machine) -> Iterator[tuple[str, str]]:
    """Column and what is seen there: WORKS, ABSENT, or what went wrong."""
    yield "version", verdict(machine.start("runner", "version"))
    for suffix, name in zip(JOBS, COLUMNS[1:4], strict=True):
        yield name, job(machine, suffix) if machine.has(PROGRAMS[suffix]) else ABSENT
    agent = machine.start("runner", "agent")
    has_greeted = agent.returncode != 0 or b"cronium-agent" in agent.stdout
    yield "agent", verdict(agent) if has_greeted else f"no greeting: {shown(agent)}"
    yield "run-as", job(machine, "sh", "--run-as", machine.row.account) if machine.has_account() else ABSENT
    yield "doctor", diagnosis(machine.start("runner", "doctor"))


def job(machine: Machine, suffix: str, *options: str) -> str:
    """A job with input, output and a variable, ended by a status of its own."""
    done = machine.start("runner", "run", f"job.{suffix}", "--json", "--input", '{"name": "Ada"}', *options)
    if b"Traceback" in done.stderr:
        return f"traceback: {shown(done)}"
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return shown(done)
    seen = done.returncode, result["output"], result["variables"]
    if seen == (3, {"name": "Ada", "colour": "blue"}, {"COLOUR": "blue"}):
        return WORKS
    error = result["error"]
    if error is None:
        return f"{result['state']}: {result['output']}"
    return f"{result['state']}: {error['message']} [{error['code']}]"


def verdict(done: subprocess.CompletedProcess[bytes]) -> str:
    """WORKS for exit status 0."""
    return WORKS if done.returncode == 0 else shown(done)


def diagnosis(done: subprocess.CompletedProcess[bytes]) -> str:
    """WORKS, or what doctor finds bad."""
    bad = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("bad")]
    return verdict(done) if not bad else "; ".join(" ".join(line.split()) for line in bad)


def shown(done: subprocess.CompletedProcess[bytes]) -> str:
    """Exit status and all that it said, which for a refusal is one sentence with a code."""
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or [""]
    return f"status {done.returncode}: {' / '.join(said)}"


def without(error: str, *calls: str) -> tuple[str, ...]:
    """Words that have the kernel answer `error` to system calls."""
    named = ",".join(calls)
    return ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={named}", "-e", f"inject={named}:error={error}")


NO_PLACES: Final = {"CRONIUM_INSTALL_DIR": "", "CRONIUM_STATE_DIR": ""}
"""The runner looks for directories itself."""
IN_TMP: Final = {**NO_PLACES, "TMPDIR": "/tmp"}
READ_ONLY_HOME: Final = 'for at in root home; do mount -o bind,ro "$1/$at" "$1/$at"; done'

BOUNDED: Final = (
    Row("root directory with a static busybox alone", roots.empty),
    Row("the same without /proc", roots.empty, proc=False,
        expected={"run-as": "[run_as.refused]", "doctor": "/proc is not mounted"}),
    Row("the same without /etc/passwd", roots.without_accounts),
    Row("umask 000", roots.empty, ("sh", "-c", 'umask 000; exec "$@"', "sh")),
    Row("umask 0777", roots.empty, ("sh", "-c", 'umask 0777; exec "$@"', "sh")),
    Row("TMPDIR mounted noexec", roots.with_temporary, environment=IN_TMP,
        mounts='mount -t tmpfs -o noexec,mode=1777 none "$1/tmp"'),
    Row("TMPDIR read-only", roots.with_temporary, environment=IN_TMP,
        mounts='mount -t tmpfs -o ro,mode=1777 none "$1/tmp"'),
    Row("TMPDIR of 1 MiB", roots.with_temporary, environment=IN_TMP,
        mounts='mount -t tmpfs -o size=1m,mode=1777 none "$1/tmp"'),
    Row("home read-only", roots.with_temporary, environment=NO_PLACES, mounts=READ_ONLY_HOME,
        expected={"doctor": "bad state directory",
                  **dict.fromkeys(("run: sh", "agent", "run-as"), "[state.unusable]")}),
    Row("home read-only, CRONIUM_STATE_DIR elsewhere", roots.with_temporary, mounts=READ_ONLY_HOME,
        environment={"CRONIUM_INSTALL_DIR": ""}, expected={"run-as": "[state.unusable]"}),
    Row("nothing writable", roots.with_temporary, environment=NO_PLACES, mounts='mount -o bind,ro "$1" "$1"',
        expected=dict.fromkeys(COLUMNS, "[install.unusable]")),
    Row("everything mounted noexec", roots.with_temporary, environment=NO_PLACES,
        mounts='for at in root home tmp var/tmp; do mount -t tmpfs -o noexec none "$1/$at"; done',
        expected=dict.fromkeys(COLUMNS, "[install.unusable]")),
    Row("1 MiB for the installation", roots.with_temporary, mounts='mount -t tmpfs -o size=1m none "$1/var"',
        environment={"CRONIUM_INSTALL_DIR": "/var/installed"}, expected=dict.fromkeys(COLUMNS, "[install.unusable]")),
    Row("LD_PRELOAD and LD_LIBRARY_PATH of what is not there", roots.empty, (),
        {"LD_LIBRARY_PATH": "/nowhere", "LD_PRELOAD": "/nowhere.so"}),
    Row("/etc/ld.so.preload and LD_PRELOAD of what is no library", roots.with_broken_preload(roots.empty), (),
        {"LD_PRELOAD": roots.BROKEN}),
    Row("kernel without all ten calls (ENOSYS)", roots.empty, without("ENOSYS", *CALLS)),
    Row("filter that refuses all ten calls (EPERM)", roots.empty, without("EPERM", *CALLS),
        expected={"run-as": "[runner.refused]"}),
)  # fmt: skip
"""What needs a static busybox, strace and root."""

REFUSED: Final = {("clone3", "EPERM"): {"run-as": "[runner.refused]"}}
"""What one sentence is all that can be had for: glibc tries no other call than clone3 when that is not permitted."""

KERNELS: Final = tuple(
    Row(f"kernel without {call} ({error})", roots.empty, without(error, call), expected=REFUSED.get((call, error), {}))
    for call in CALLS
    for error in ("ENOSYS", "EPERM")
)


def of_release(version: str, name: str) -> tuple[Row, ...]:
    """The rows of one Debian release."""
    known = roots.with_directory_account(roots.distribution(name))
    return (
        Row(f"Debian {version} ({name})", roots.distribution(name)),
        Row(f"Debian {version}, run-as for an account that only an NSS module knows", known, account="zoe"),
        Row(f"Debian {version}, used by that account", known, uid=roots.DIRECTORY_USER,
            environment={**NO_PLACES, "HOME": ""}),
    )  # fmt: skip


DISTRIBUTIONS: Final = (
    *(row for version, name in (("11", "bullseye"), ("12", "bookworm"), ("13", "trixie"))
      for row in of_release(version, name)),
    Row("Debian 13 with /etc/ld.so.preload and LD_PRELOAD of what is no library",
        roots.with_broken_preload(roots.distribution("trixie")), (), {"LD_PRELOAD": roots.BROKEN}),
    Row("container (rootless, default seccomp), busybox", roots.with_temporary, container=True,
        environment=NO_PLACES),
    Row("container (rootless, default seccomp), Debian 12", roots.distribution("bookworm"), container=True,
        environment=NO_PLACES),
    Row("aarch64 under qemu-user, Debian's busybox and Python", host_aarch64.debian, emulated=True),
)  # fmt: skip
"""What needs debootstrap and its mirror, or podman, or qemu."""
