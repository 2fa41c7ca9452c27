"""Putting the runner on a host, once, and starting its agent there.

The agent is started directly at the path where this very binary would be; only when that fails is the host looked at
and the binary uploaded, verified and installed. So a host that has it pays nothing for the question. What is known of
its files counts for a day; then the start itself hashes them first, in the same session.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from cronium_runner.wire import codes

from .channel import AgentChannel, AgentNotStartedError
from .connection import Connection
from .deployments import CHOSEN, FAILED, INSTALLED, PRESENT, ROLLED_BACK, Deployments, Known, Made
from .errors import (
    AuthenticationError,
    ControllerError,
    DeployError,
    FinalDeployError,
    HostKeyError,
    RefusedError,
    UnreachableError,
)
from .runners import MACHINES, RunnerBinary, Runners
from .uploading import MARK, excerpt, shell, upload, verify

__all__ = ["Deployment", "Runners", "deploy", "roll_back", "start_agent"]

INSTALL_SECONDS: Final = 60.0
HAND_OVER_SECONDS: Final = 180.0
"""For an agent of another account, whose first one also waits for sudo and for a runner to be installed there."""
_FOLDER: Final = re.compile(r".+-[0-9a-f]{12}")
_NOT_OURS: Final = "source"
"""Folders of this name and a digest hold the helpers of runners that run from source."""
_CHANGED: Final = 93
"""Exit status of a start that found other files than were installed."""

_log = logging.getLogger("cronium.install")


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


async def start_agent(
    connection: Connection,
    runners: Runners,
    run_as: str | None = None,
    *,
    ledger: Deployments | None = None,
    reconnect: Callable[[], Awaitable[Connection]] | None = None,
) -> tuple[AgentChannel, Deployment | None]:
    """An agent on the host; the runner is deployed first when it isn't there.

    `run_as` is the account that it becomes the agent of. `reconnect` gives another connection when the first one is
    lost while deploying; the agent's is then that one. Raises DeployError, and RefusedError when it may not.
    """
    site = Site(connection, runners, ledger, reconnect)
    known = site.known()
    chosen = next((one for one in known if one.is_chosen), None)
    start = _usual_start(runners, known) if chosen is None else (chosen.folder, chosen.version, chosen.architecture)
    if start is not None:
        try:
            return await _open_known(site, start, known, run_as), None
        except AgentNotStartedError as error:
            site.invalidate(start[0])
            if run_as is not None:
                _refuse_account(error, site.host)
    wanted = None if chosen is None else _binary_of(site, chosen)
    deployment, binary = await _deploy(site, wanted)
    try:
        return await _open_agent(site, binary.folder, run_as), deployment
    except AgentNotStartedError as error:
        site.invalidate(binary.folder)
        if run_as is not None:
            _refuse_account(error, site.host)
        raise DeployError(
            "deploy.failed",
            f"the runner is at {deployment.path} but does not start there: {excerpt(error.printed, error.exit_status)}",
            host=site.host,
        ) from None


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
    return await _deploy(Site(connection, runners, ledger, reconnect), None)


async def roll_back(connection: Connection, runners: Runners, ledger: Deployments, version: str | None) -> Deployment:
    """Has jobs use another runner on the host: one of `version`, else the one before the present one.

    It holds until the next `deploy` that asks for the controller's own. Raises DeployError when there is none.
    """
    began, now = time.monotonic(), time.time()
    site = Site(connection, runners, ledger)
    machine, listing = await _look(site)
    usual = runners.for_machine(machine, site.host)
    folder, binary = _other_runner(site, listing, usual, MACHINES[machine], version)
    if binary is not None:
        deployment, _ = await _deploy(site, binary)
    else:
        said, _ = await _installed(site, folder)
        ledger.note_checked(connection.host, runners.root, folder, _version(folder), MACHINES[machine], said)
        deployment = Deployment(site.path(folder), 0, PRESENT, _version(folder))
    ledger.choose(connection.host, runners.root, None if folder == usual.folder else folder)
    took = (time.monotonic() - began) * 1000
    sha256 = next((one.sha256 for one in site.known() if one.folder == folder), None)
    ledger.record(
        connection.host,
        Made(
            site.host, deployment.version, sha256, MACHINES[machine], now, took, deployment.uploaded_bytes,
            deployment.method, deployment.attempts, ROLLED_BACK if version is None else CHOSEN,
        ),
    )  # fmt: skip
    return deployment


def _other_runner(
    site: Site, listing: list[str], usual: RunnerBinary, architecture: str, version: str | None
) -> tuple[str, RunnerBinary | None]:
    """The folder of the runner to change to; with its binary when it is not on the host. Raises DeployError."""
    if version is None:
        chosen = next((one for one in site.known() if one.is_chosen), None)
        folder = _earlier(listing, usual.folder if chosen is None else chosen.folder)
    else:
        folder = next((one for one in listing if version in (one, _version(one))), None)
    if folder is not None:
        return folder, None
    binary = None
    if version is not None:
        binary = usual if usual.version == version else site.runners.of_version(version, architecture)
    if binary is None:
        raise _no_version(site, version, listing)
    return binary.folder, binary


def _no_version(site: Site, version: str | None, listing: list[str]) -> DeployError:
    there = ", ".join(listing) or "none"
    wanted = "earlier runner" if version is None else f"runner {version}, nor is one beside our own"
    return DeployError("deploy.no_version", f"the host has no {wanted}; it has {there}", host=site.host)


def _earlier(listing: list[str], current: str) -> str | None:
    """The one that was installed before `current`; `listing` is newest first."""
    following = listing[listing.index(current) + 1 :] if current in listing else listing
    return following[0] if following else None


def _usual_start(runners: Runners, known: list[Known]) -> tuple[str, str, str] | None:
    """Folder, version and architecture of the controller's own runner for this host; None when it has none to try."""
    likely = runners.likely()
    if known:  # what the host is doesn't have to be guessed
        likely = [binary for binary in likely if binary.machine == known[0].architecture] or likely
    return (likely[0].folder, likely[0].version, likely[0].machine) if likely else None


def _binary_of(site: Site, chosen: Known) -> RunnerBinary:
    """The binary of a chosen runner that is gone from the host. Raises DeployError when it isn't here either."""
    binary = site.runners.of_version(chosen.version, chosen.architecture)
    if binary is None or binary.folder != chosen.folder:
        raise DeployError(
            "deploy.no_version",
            f"the chosen runner {chosen.folder} does not start on the host, and its binary is not here; "
            "go back to the controller's own with: cronium deploy",
            host=site.host,
        )
    return binary


async def _open_known(site: Site, start: tuple[str, str, str], known: list[Known], run_as: str | None) -> AgentChannel:
    """Starts the agent where it should be, and writes down what that showed. Raises AgentNotStartedError."""
    folder, version, architecture = start
    entry = next((one for one in known if one.folder == folder), None)
    now = time.time()
    is_hashed = entry is not None and entry.tree_sha256 is not None and not entry.is_valid(now)
    agent = await _open_agent(site, folder, run_as, tree=entry.tree_sha256 if entry and is_hashed else None)
    if site.ledger is None:
        return agent
    if entry is not None and is_hashed:
        site.ledger.note_rehashed(site.connection.host, site.runners.root, entry)
    elif entry is None or entry.is_check_due(now):
        told = str(agent.agent.get("runner", ""))
        if entry is not None and entry.said_version and told and told != entry.said_version:
            _log.warning("runner_version_changed", extra={"host": site.host, "was": entry.said_version, "is": told})
            agent.close()
            raise AgentNotStartedError(None, f"it says that it is {told}, and was {entry.said_version}".encode())
        site.ledger.note_checked(site.connection.host, site.runners.root, folder, version, architecture, told)
    return agent


async def _open_agent(site: Site, folder: str, run_as: str | None, *, tree: str | None = None) -> AgentChannel:
    # `exec PATH agent` means the same in sh, bash, dash, zsh, fish and csh; sshd starts it in the home directory.
    command = f"exec {shlex.quote(site.path(folder))} agent"
    if run_as is not None:
        command = f"{command} --run-as {shlex.quote(run_as)}"
    if tree is not None:
        changed = f"echo the installed files were changed >&2; exit {_CHANGED}"
        guarded = f'if [ "$({_tree(site, folder)})" = {tree} ]; then {command}; fi; {changed}'
        command = f"exec sh -c {shlex.quote(guarded)}"
    if run_as is None:
        return await AgentChannel.open(site.connection, command)
    return await AgentChannel.open(site.connection, command, HAND_OVER_SECONDS)


def _refuse_account(error: AgentNotStartedError, host: str) -> None:
    """Raises RefusedError when the runner is there and said why it did not become somebody else's agent."""
    told = codes.told(error.printed.decode("utf-8", "replace"))
    if told is not None:
        raise RefusedError(*told, host=host) from None


async def _deploy(site: Site, wanted: RunnerBinary | None) -> tuple[Deployment, RunnerBinary]:
    """Attempts with pauses, and what became of them written down. `wanted`: this one instead of the usual."""
    began, now = time.monotonic(), time.time()
    host = site.connection.host
    binary = wanted
    attempts = 0
    try:
        for pause in (*site.runners.pauses, None):
            attempts += 1
            try:
                machine, listing = await _look(site)
                binary = wanted or site.runners.for_machine(machine, site.host)
                path, method = await _put_there(site, binary, listing)
                break
            except (HostKeyError, AuthenticationError, FinalDeployError):
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


async def _look(site: Site) -> tuple[str, list[str]]:
    """The host's machine, and the folders of the runners that it has, newest first. Raises FinalDeployError."""
    root = shlex.quote(site.runners.root)
    # The first line is ours whatever rc files have printed before.
    # A connection that was cut has left its upload behind; an hour later it is certainly nobody's any more.
    sweep = (
        f"find {root} -maxdepth 1 \\( -name '.upload-*' -o -name '*.tmp' \\) -mmin +60 -exec rm -rf {{}} + 2>/dev/null"
    )
    ours = f"rm -f {' '.join(map(shlex.quote, site.left))}; " if site.left else ""
    script = f"echo {MARK}; uname -sm; mkdir -p -m 700 {root} && {{ {ours}{sweep}; ls -t {root}; }}"
    try:
        looked = await shell(site.connection, script)
    except DeployError as error:
        raise error.as_final() from None
    site.left.clear()
    words, _, listing = looked.partition(f"{MARK}\n")[2].partition("\n")
    system, _, machine = words.partition(" ")
    if system != "Linux":
        raise DeployError(
            "deploy.unsupported", f"runners exist for Linux only; the host says {words!r}", host=site.host
        )
    return machine, [name for name in listing.split("\n") if _is_runner(name)]


def _version(folder: str) -> str:
    return folder.rpartition("-")[0]


def _is_runner(name: str) -> bool:
    matched = _FOLDER.fullmatch(name)
    return matched is not None and _version(name) != _NOT_OURS


async def _put_there(site: Site, binary: RunnerBinary, listing: list[str]) -> tuple[str, str]:
    """One attempt: where the runner is then, and how it came there. Raises DeployError and UnreachableError."""
    path = site.path(binary.folder)
    is_there = binary.folder in listing
    if is_there:
        with contextlib.suppress(DeployError):
            said, tree = await _installed(site, binary.folder)
            expected = next((one.tree_sha256 for one in site.known() if one.folder == binary.folder), None)
            if expected is None or tree is None or tree == expected:
                _note_verified(site, binary, said, tree)
                return path, PRESENT
            _log.warning("runner_changed_on_host", extra={"host": site.host, "path": path})
        site.invalidate(binary.folder)
    temporary = f"{site.runners.root}/.upload-{os.urandom(8).hex()}"
    try:
        method = await upload(site.connection, binary, temporary)
        await verify(site.connection, binary, temporary)
        said, tree = _read_installed(
            await shell(
                site.connection,
                _install_script(site, binary, temporary, replaces=is_there),
                timeout=INSTALL_SECONDS,
            )
        )
    except BaseException:
        site.left.append(temporary)
        with contextlib.suppress(ControllerError):
            await shell(site.connection, f"rm -f {shlex.quote(temporary)}")
            site.left.clear()
        raise
    _note_verified(site, binary, said, tree)
    return path, method


def _note_verified(site: Site, binary: RunnerBinary, said: str, tree: str | None) -> None:
    if site.ledger is not None:
        site.ledger.note_verified(site.connection.host, site.runners.root, binary, said, tree)


def _install_script(site: Site, binary: RunnerBinary, temporary: str, *, replaces: bool) -> str:
    """Installs an upload, has it say its version, hashes what is there, and removes what is too old.

    One script, so that the upload goes also when the connection is lost meanwhile. A runner that is there and isn't
    what it should be is moved away first: its files may have the right sizes.
    """
    quoted = shlex.quote(temporary)
    target = shlex.quote(f"{site.runners.root}/{binary.folder}")
    aside = shlex.quote(f"{site.runners.root}/{binary.folder}.{os.urandom(4).hex()}.tmp")
    # Only when the new one starts: what cannot run here must not take the place of something that perhaps does.
    away = f"{quoted} version >/dev/null && mv {target} {aside} && " if replaces else ""
    return (
        f"chmod 700 {quoted} && {away}{quoted} install {target} && {{ {_installed_script(site, binary.folder)}; }}; "
        f"status=$?; rm -rf {quoted} {aside}; [ $status = 0 ] && {{ {_prune_script(site, binary.folder)}; }}; "
        "exit $status"
    )


def _tree(site: Site, folder: str) -> str:
    """A command that prints one digest for all installed files; nothing where there is no `sha256sum`."""
    directory = shlex.quote(f"{site.runners.root}/{folder}")
    listed = f"cd {directory} && find . -type f -exec sha256sum {{}} +"
    # Braces, as a parenthesis would make an arithmetic expression of the `$(` before it.
    return f"{{ {listed}; }} 2>/dev/null | LC_ALL=C sort -k 2 | sha256sum 2>/dev/null | cut -c 1-64"


def _installed_script(site: Site, folder: str) -> str:
    """Prints after the mark: what the runner says of its version, and the digest of its files."""
    return f"echo {MARK}; {shlex.quote(site.path(folder))} version && {{ {_tree(site, folder)}; true; }}"


async def _installed(site: Site, folder: str) -> tuple[str, str | None]:
    """The version that an installed runner says, and its files' digest. Raises DeployError when it doesn't start."""
    return _read_installed(await shell(site.connection, _installed_script(site, folder)))


def _read_installed(printed: str) -> tuple[str, str | None]:
    lines = printed.rpartition(f"{MARK}\n")[2].split("\n")
    words = lines[0].split()
    tree = next((line for line in lines[1:] if re.fullmatch(r"[0-9a-f]{64}", line)), None)
    return (words[1] if len(words) > 1 else lines[0]), tree


def _prune_script(site: Site, folder: str) -> str:
    """Removes runners that are older than the newest few: none that a process of the account is, none that is chosen.

    A runner loads files of its folder while it runs, and its scripts find their helpers there.
    """
    spared = {folder, *(known.folder for known in site.known() if known.is_chosen)}
    names = "|".join(map(shlex.quote, sorted(spared)))
    return (
        f"cd {shlex.quote(site.runners.root)} && used=$(for p in /proc/[0-9]*; do readlink $p/exe; done 2>/dev/null); "
        "n=0; for d in $(ls -t | grep -E '^[A-Za-z0-9._+-]+-[0-9a-f]{12}$' | grep -v '^source-'); do "
        f"n=$((n+1)); [ $n -le {site.runners.kept} ] && continue; "
        f'case $d in {names}) continue;; esac; case $used in */$d/*) continue;; esac; rm -rf "./$d"; done'
    )
