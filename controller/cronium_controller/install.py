"""Putting the runner on a host, once: uploaded, verified, installed beside earlier ones, and written down.

Tried as often as the contract says, with nothing left behind by a try that failed. How its agent is started is
`starting`'s, which runner a person chose `rolling_back`'s.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shlex
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cronium_runner.wire import contents, safe_shell
from cronium_runner.wire.text import clean

from . import remote_shell
from .deploy.installed_forms import is_form
from .deploy.known_builds import carried_build
from .deployments import FAILED, INSTALLED, PRESENT, Deployments, Known, Made
from .errors import (
    AuthenticationError,
    ControllerError,
    DeployError,
    FinalDeployError,
    HostKeyError,
    LoginShellError,
    UnreachableError,
)
from .logs import logger
from .runners import RunnerBinary, Runners
from .sessions import Connection
from .stalls import NoProgressError, Progress, while_it_progresses
from .uploading import MARK, shell, upload, verify

INSTALL_SECONDS: Final = 60.0
_LONGEST_VERSION: Final = 80
"""Characters of what an installed runner says of its version."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

_log = logger("cronium.install")


@dataclass(frozen=True, slots=True)
class Deployment:
    """What `deploy` did: where the runner is, and how many bytes it took to get it there (0 when it was there)."""

    path: str
    uploaded_bytes: int
    method: str
    version: str = ""
    attempts: int = 1


@dataclass(slots=True)
class Site:
    """A host to put runners on: its connection, what is known of it, and how to connect again when that is lost."""

    connection: Connection
    runners: Runners
    ledger: Deployments | None = None
    reconnect: Callable[[], Awaitable[Connection]] | None = None
    left: list[str] = field(default_factory=list)
    """Uploads that could not be removed, because the connection was lost."""
    progress: Progress = field(default_factory=Progress)
    attempts: int = 0

    def __post_init__(self) -> None:
        self.runners = self.runners.for_host(self.connection.host)

    @property
    def host(self) -> str:
        return self.connection.host.name

    def path(self, folder: str) -> str:
        """The runner of a folder."""
        return f"{self.runners.root}/{folder}/cronium-runner"

    def known(self) -> list[Known]:
        """What the ledger knows of the runners here."""
        return [] if self.ledger is None else self.ledger.known(self.connection.host, self.runners.root)

    def invalidate(self, folder: str) -> None:
        """Nothing that was known of this runner counts any more."""
        if self.ledger is not None:
            self.ledger.invalidate(self.connection.host, self.runners.root, folder)


class Installed(NamedTuple):
    """What an installed runner says of its version, one digest for all its files, and its list of contents."""

    version: str
    tree: str | None
    listing: str


async def deploy(
    connection: Connection,
    runners: Runners,
    *,
    ledger: Deployments | None = None,
    reconnect: Callable[[], Awaitable[Connection]] | None = None,
) -> tuple[Deployment, RunnerBinary]:
    """Makes sure that the host has the controller's runner, whole. Nothing is uploaded when it has.

    As often as `runners` says, with pauses; on another connection when this one is lost. Raises DeployError.
    """
    return await put_on(Site(connection, runners, ledger, reconnect), None)


async def put_on(site: Site, wanted: RunnerBinary | None) -> tuple[Deployment, RunnerBinary]:
    """Attempts with pauses, and what became of them written down. `wanted`: this one instead of the usual.

    Raises DeployError, also when no byte of an upload was acknowledged for as long as `runners` says.
    """
    began, now = time.monotonic(), time.time()
    site.progress.note()
    patience = site.runners.give_up_seconds
    try:
        return await while_it_progresses(_put_on(site, wanted), site.progress, patience)
    except NoProgressError:
        error = DeployError(
            "deploy.failed",
            f"the upload was given up: no byte of it was acknowledged for {patience:g} s, in {site.attempts} attempts; "
            "look at the network between here and the host: a firewall, or packets that are too large for it",
            host=site.host,
        )
        _record(site, wanted, now, began, 0, "", site.attempts, FAILED, error.message)
        raise error from None


async def _put_on(site: Site, wanted: RunnerBinary | None) -> tuple[Deployment, RunnerBinary]:
    began, now = time.monotonic(), time.time()
    host = site.connection.host
    binary = wanted
    attempts = 0
    try:
        for pause in (*site.runners.pauses, None):
            attempts += 1
            site.attempts = attempts
            try:
                machine, listing = await look(site)
                binary = wanted or site.runners.for_machine(machine, site.host)
                path, method = await _put_there(site, binary, listing)
                break
            except (HostKeyError, AuthenticationError, LoginShellError, FinalDeployError):
                raise
            except (DeployError, UnreachableError) as error:
                if binary is not None:
                    site.invalidate(binary.folder)
                if pause is None or error.code == "deploy.unsupported":
                    raise
                if site.connection.is_closed() and site.reconnect is None:
                    raise
                _log.warning("runner_deployment_failed", extra={"host": site.host, "attempt": attempts})
            await asyncio.sleep(pause)
            if site.connection.is_closed() and site.reconnect is not None:
                site.connection = await site.reconnect()
    except ControllerError as error:
        _record(site, binary, now, began, 0, "", attempts, FAILED, error.message)
        raise
    assert binary is not None
    size = 0 if method == PRESENT else binary.size
    outcome = PRESENT if method == PRESENT else INSTALLED
    _record(site, binary, now, began, size, method, attempts, outcome, None)
    if size:
        _log.info("runner_deployed", extra={"host": host.name, "version": binary.version, "method": method})
    return Deployment(path, size, method, binary.version, attempts), binary


def _record(
    site: Site, binary: RunnerBinary | None, now: float, began: float, size: int, method: str, attempts: int,
    outcome: str, error: str | None,
) -> None:  # fmt: skip
    if site.ledger is None:
        return
    took = (time.monotonic() - began) * 1000
    of: tuple[str | None, str | None, str | None] = (
        (None, None, None) if binary is None else (binary.version, binary.sha256, binary.machine)
    )
    site.ledger.record(site.connection.host, Made(site.host, *of, now, took, size, method, attempts, outcome, error))


async def look(site: Site) -> tuple[str, list[str]]:
    """The host's machine, and the folders of the runners that it has, newest first. Raises FinalDeployError."""
    root = remote_shell.path(site.runners.root)
    # The first line is ours whatever rc files have printed before.
    # A connection that was cut has left its upload behind; an hour later it is certainly nobody's any more.
    sweep = (
        f"find {root} -maxdepth 1 \\( -name '.upload-*' -o -name '*.tmp' \\) -mmin +60 -exec rm -rf {{}} + 2>/dev/null"
    )
    ours = f"rm -f {' '.join(map(remote_shell.path, site.left))}; " if site.left else ""
    make = f"{safe_shell.FUNCTIONS}make_safe {remote_shell.path(site.runners.root)}"
    if not site.runners.root.startswith("/"):  # without a home directory, sshd starts us in /
        make = f"{_HOME_IS_THERE}{make}"
    script = f"{make} || exit {safe_shell.UNSAFE}; echo {MARK}; uname -sm; {ours}{sweep}; ls -t {root}"
    try:
        looked = await shell(site.connection, script)
    except DeployError as error:
        raise _unsafe(site, error) from None
    site.left.clear()
    words, _, listing = looked.partition(f"{MARK}\n")[2].partition("\n")
    system, _, machine = words.partition(" ")
    if system != "Linux":
        raise DeployError(
            "deploy.unsupported", f"runners exist for Linux only; the host says {words!r}", host=site.host
        )
    return machine, [name for name in listing.split("\n") if is_form(name)]


_HOME_IS_THERE: Final = (
    f"[ -d ~/. ] || {{ echo {safe_shell.WORD} the home directory $HOME of $(id -un) is not there, or closed to it >&2; "
    f"exit {safe_shell.UNSAFE}; }}; "
)


def _unsafe(site: Site, error: DeployError) -> FinalDeployError:
    """What to say of a host that refused to be looked at: mostly that its install root isn't safe."""
    _, mark, said = error.message.rpartition(safe_shell.WORD)
    if not mark:
        return error.as_final()
    said = said.rpartition(" (exit status ")[0].strip()
    return FinalDeployError(
        "install.unusable",
        f"the runner cannot be kept in {site.runners.root}: {said}; correct that, "
        "or name another folder in CRONIUM_RUNNER_ROOT",
        host=site.host,
    )


async def _put_there(site: Site, binary: RunnerBinary, listing: list[str]) -> tuple[str, str]:
    """One attempt: where the runner is then, and how it came there. Raises DeployError and UnreachableError."""
    path = site.path(binary.folder)
    is_there = binary.folder in listing
    if is_there:
        with contextlib.suppress(DeployError):
            found = await installed(site, binary.folder)
            expected = next((one.tree_sha256 for one in site.known() if one.folder == binary.folder), None)
            if expected is None or found.tree in (None, expected) or await _is_adopted(site, binary, found):
                _note_verified(site, binary, found)
                return path, PRESENT
            _log.warning("runner_changed_on_host", extra={"host": site.host, "path": path})
        site.invalidate(binary.folder)
    temporary = f"{site.runners.root}/.upload-{os.urandom(8).hex()}"
    try:
        method = await upload(site.connection, binary, temporary, site.progress, site.runners.stall_seconds)
        await verify(site.connection, binary, temporary)
        site.progress.note()
        install_script = _install_script(site, binary, temporary, replaces=is_there)
        printed = await shell(site.connection, install_script, timeout=INSTALL_SECONDS)
        found = _read_installed(site, binary.folder, printed)
    except BaseException:
        site.left.append(temporary)
        if site.progress.quiet_seconds() >= site.runners.give_up_seconds:
            raise  # no answer there
        with contextlib.suppress(ControllerError):
            await shell(site.connection, f"rm -f {remote_shell.path(temporary)}")
            site.left.clear()
        raise
    _note_verified(site, binary, found)
    if site.ledger is not None:
        await site.ledger.builds.note_uploaded(binary)
    return path, method


async def _is_adopted(site: Site, binary: RunnerBinary, found: Installed) -> bool:
    """Whether nothing differs from the binary but libraries that the account has exchanged and recorded.

    Not where signers are named: they have not signed those.
    """
    if site.runners.demands_signatures or not contents.has_adopted(found.listing):
        return False
    build = await asyncio.to_thread(carried_build, binary)
    built = hashlib.sha256(contents.as_built(found.listing).encode()).hexdigest()
    if build is None or build.files[contents.FILE] != built:
        return False
    _log.warning("runner_adopted_on_host", extra={"host": site.host, "path": site.path(binary.folder)})
    return True


def _note_verified(site: Site, binary: RunnerBinary, found: Installed) -> None:
    if site.ledger is not None:
        site.ledger.note_verified(site.connection.host, site.runners.root, binary, found.version, found.tree)


def _install_script(site: Site, binary: RunnerBinary, temporary: str, *, replaces: bool) -> str:
    """Installs an upload, has it say its version, hashes what is there, and removes what is too old.

    One script, so that the upload goes also when the connection is lost meanwhile. A runner that is there and isn't
    what it should be is moved away first: its files may have the right sizes.
    """
    quoted = remote_shell.path(temporary)
    target = remote_shell.path(f"{site.runners.root}/{binary.folder}")
    aside = remote_shell.path(f"{site.runners.root}/{binary.folder}.{os.urandom(4).hex()}.tmp")
    # Only when the new one starts: what cannot run here must not take the place of something that perhaps does.
    away = f"{quoted} version >/dev/null && mv {target} {aside} && " if replaces else ""
    return (
        f"chmod 700 {quoted} && {away}{quoted} install {target} && {{ {_installed_script(site, binary.folder)}; }}; "
        f"status=$?; rm -rf {quoted} {aside}; [ $status = 0 ] && {{ {_prune_script(site, binary.folder)}; }}; "
        "exit $status"
    )


def tree_command(site: Site, folder: str) -> str:
    """A command that prints one digest for all installed files.

    Not what Python keeps of the helpers that scripts have imported: that comes later, and differs.
    """
    directory = remote_shell.path(f"{site.runners.root}/{folder}")
    # Braces, as a parenthesis would make an arithmetic expression of the `$(` before it.
    return f"{_HASHER}{{ cd {directory} && {_HASHED}; }} | {_TREE}"


_HASHER: Final = (
    "if command -v sha256sum >/dev/null; then hash=sha256sum; "
    'elif command -v openssl >/dev/null; then hash="openssl dgst -sha256 -r"; else hash="shasum -a 256"; fi; '
)
_HASHED: Final = (
    "find . -name __pycache__ -prune -o -type f -exec $hash {} + 2>/dev/null | tr '*' ' ' | LC_ALL=C sort -k 2"
)
_TREE: Final = "$hash 2>/dev/null | cut -c 1-64"


def _installed_script(site: Site, folder: str) -> str:
    """Prints after the mark what the runner says of its version; then its list of contents, the digest of each file
    (and its size, where the list has no digests), and the digest of all that."""
    directory = remote_shell.path(f"{site.runners.root}/{folder}")
    sizes = f"grep -q '^s ' {contents.FILE} || find . -type f -exec ls -ln {{}} +"
    return (
        f"echo {MARK}; {_HASHER}{remote_shell.path(site.path(folder))} version && ( cd {directory} && "
        f"{{ cat {contents.FILE}; echo {MARK}; files=$({_HASHED}); "
        f'printf "%s\\n" "$files"; printf "%s\\n" "$files" | {_TREE}; {sizes}; }} )'
    )


async def installed(site: Site, folder: str) -> Installed:
    """What is said on the host about an installed runner.

    Raises DeployError when it doesn't start, or `install.damaged` when its files are not as they were built.
    """
    try:
        printed = await shell(site.connection, _installed_script(site, folder))
    except DeployError as error:
        if "[install.damaged]" in error.message:  # it has found that out by itself, and says which file
            error.code = "install.damaged"
        raise
    return _read_installed(site, folder, printed)


def _read_installed(site: Site, folder: str, printed: str) -> Installed:
    head, _, found = printed.rpartition(f"{MARK}\n")
    said, _, listing = head.rpartition(f"{MARK}\n")[2].partition("\n")
    digests, sizes, tree = {}, {}, None
    for line in found.splitlines():
        words = line.split()
        if _DIGEST.fullmatch(line):
            tree = line
        elif len(words) == 2 and _DIGEST.fullmatch(words[0]):
            digests[words[1].removeprefix("./")] = words[0]
        elif len(words) > 5 and words[4].isdigit():
            sizes[words[-1].removeprefix("./")] = int(words[4])
    damaged = contents.damage(listing, digests, sizes)
    if damaged is not None:
        _log.warning("runner_damaged_on_host", extra={"host": site.host, "path": damaged})
        raise DeployError(
            "install.damaged",
            f"{site.runners.root}/{folder}/{clean(damaged, _LONGEST_VERSION)} is not as it was installed; install the "
            "runner again with: cronium deploy",
            host=site.host,
        )
    version = said.split()
    return Installed(clean(version[1] if len(version) > 1 else said, _LONGEST_VERSION), tree, listing)


def _prune_script(site: Site, folder: str) -> str:
    """Removes runners that are older than the newest few: none that a process of the account is, none that is chosen.

    A runner loads files of its folder while it runs, and its scripts find their helpers there.
    """
    spared = {folder, *(known.folder for known in site.known() if known.is_chosen)}
    names = "|".join(map(shlex.quote, sorted(spared)))
    root = remote_shell.path(site.runners.root)
    return (
        f"cd {root} && used=$(for p in /proc/[0-9]*; do readlink $p/exe; done 2>/dev/null; "
        # A runner that is not dumpable shows its program to root alone, but its command line to every user.
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' '); "
        "n=0; for d in $(ls -t | grep -E '^[A-Za-z0-9._+-]+-[0-9a-f]{12}$' | grep -v '^source-'); do "
        f"n=$((n+1)); [ $n -le {site.runners.kept} ] && continue; "
        f'case $d in {names}) continue;; esac; case $used in */$d/*) continue;; esac; rm -rf "./$d"; done'
    )
