"""Putting the runner on a host, once, and starting its agent there.

The agent is started directly at the path where this very binary would be; only when that fails is the host looked at
and the binary uploaded, verified and installed. So a host that has it pays nothing for the question.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncssh

from cronium_runner.wire.names import INSTALL_ROOT

from .channel import AgentChannel, AgentNotStartedError
from .connection import Connection, reason
from .errors import ControllerError, DeployError

MACHINES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
UPLOAD_SECONDS: Final = 300.0
INSTALL_SECONDS: Final = 60.0
_PIECE: Final = 256 * 1024
_NAME: Final = re.compile(r"cronium-runner-(?P<version>.+)-linux-(?P<arch>[a-z0-9_]+)")
_MARK: Final = "cronium:"

_log = logging.getLogger("cronium.install")


@dataclass(frozen=True, slots=True)
class RunnerBinary:
    """A runner that can be deployed. `sha256` is of the whole file, in hex; `size` in bytes."""

    path: Path
    version: str
    machine: str
    sha256: str
    size: int

    @property
    def folder(self) -> str:
        """The name of its installed form below the install root."""
        return f"{self.version}-{self.sha256[:12]}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What `deploy` did: where the runner is, and how many bytes it took to get it there (0 when it was there)."""

    path: str
    uploaded_bytes: int
    method: str


class Runners:
    """The binaries we can deploy, and where on hosts they go."""

    def __init__(self, binary: str | None = None, *, root: str | None = None) -> None:
        """`binary` is a file; else CRONIUM_RUNNER_BINARY, else what scripts/build left in dist/.

        `root` is a folder on the hosts, relative to the home directory; else CRONIUM_RUNNER_ROOT, else the usual one.
        """
        self._chosen = binary or os.environ.get("CRONIUM_RUNNER_BINARY")
        self.root = root or os.environ.get("CRONIUM_RUNNER_ROOT") or INSTALL_ROOT
        self._known: dict[str, RunnerBinary] = {}

    def for_machine(self, machine: str, host: str) -> RunnerBinary:
        """The binary for `uname -m`. Raises ControllerError when there is none."""
        architecture = MACHINES.get(machine)
        if architecture is None:
            raise DeployError("deploy.unsupported", f"no runner exists for the architecture {machine}", host=host)
        if architecture not in self._known:
            self._known[architecture] = _read_binary(self._find(architecture, host))
        return self._known[architecture]

    def likely(self) -> list[RunnerBinary]:
        """The binaries that are here, our own architecture's first: where an agent may already be waiting."""
        found = []
        for architecture in sorted(set(MACHINES.values()), key=lambda name: name != os.uname().machine):
            with contextlib.suppress(ControllerError):
                found.append(self.for_machine(architecture, ""))
        return found

    def _find(self, architecture: str, host: str) -> Path:
        if self._chosen is not None:
            path = Path(self._chosen)
            matched = _NAME.fullmatch(path.name)
            if not path.is_file():
                raise ControllerError("binary.missing", f"no runner binary at {path}", host=host or None)
            if matched and matched["arch"] != architecture:
                raise DeployError("deploy.unsupported", f"{path.name} is not for {architecture}", host=host or None)
            return path
        dist = Path(__file__).resolve().parents[2] / "dist"
        candidates = [path for path in dist.glob(f"cronium-runner-*-linux-{architecture}") if path.is_file()]
        if not candidates:
            raise ControllerError(
                "binary.missing",
                f"there is no runner binary for {architecture}; make it with scripts/build, "
                "or name one with --binary or CRONIUM_RUNNER_BINARY",
                host=host or None,
            )
        return max(candidates, key=lambda path: path.stat().st_mtime)


async def start_agent(connection: Connection, runners: Runners) -> tuple[AgentChannel, Deployment | None]:
    """An agent on the host; the runner is deployed first when it isn't there. Raises DeployError."""
    host = connection.host.name
    for binary in runners.likely()[:1]:
        with contextlib.suppress(AgentNotStartedError):
            return await AgentChannel.open(connection, _agent_command(runners, binary)), None
    deployment, binary = await deploy(connection, runners)
    try:
        return await AgentChannel.open(connection, _agent_command(runners, binary)), deployment
    except AgentNotStartedError as error:
        raise DeployError(
            "deploy.failed",
            f"the runner is at {deployment.path} but does not start there: "
            f"{_excerpt(error.printed, error.exit_status)}",
            host=host,
        ) from None


async def deploy(connection: Connection, runners: Runners) -> tuple[Deployment, RunnerBinary]:
    """Makes sure that the host has the runner. Nothing is uploaded when it has. Raises DeployError."""
    host = connection.host.name
    root = shlex.quote(runners.root)
    # The first line is ours whatever rc files have printed before.
    looked = await _shell(connection, f"echo {_MARK}; uname -sm; mkdir -p -m 700 {root} && ls {root}")
    words, _, listing = looked.partition(f"{_MARK}\n")[2].partition("\n")
    system, _, machine = words.partition(" ")
    if system != "Linux":
        raise DeployError("deploy.unsupported", f"runners exist for Linux only; the host says {words!r}", host=host)
    binary = runners.for_machine(machine, host)
    path = f"{runners.root}/{binary.folder}/cronium-runner"
    if binary.folder in listing.split("\n"):
        with contextlib.suppress(DeployError):
            await _shell(connection, f"{shlex.quote(path)} version")
            return Deployment(path, 0, "present"), binary
    temporary = f"{runners.root}/.upload-{os.urandom(8).hex()}"
    try:
        method = await _upload(connection, binary, temporary)
        await _verify(connection, binary, temporary)
        quoted = shlex.quote(temporary)
        target = shlex.quote(f"{runners.root}/{binary.folder}")
        await _shell(connection, f"chmod 700 {quoted} && {quoted} install {target}", timeout=INSTALL_SECONDS)
    finally:
        with contextlib.suppress(ControllerError):
            await _shell(connection, f"rm -f {shlex.quote(temporary)}")
    _log.info("runner_deployed", extra={"host": host, "version": binary.version, "method": method})
    return Deployment(path, binary.size, method), binary


def _agent_command(runners: Runners, binary: RunnerBinary) -> str:
    # `exec PATH agent` means the same in sh, bash, dash, zsh, fish and csh; sshd starts it in the home directory.
    return f"exec {shlex.quote(f'{runners.root}/{binary.folder}/cronium-runner')} agent"


async def _upload(connection: Connection, binary: RunnerBinary, temporary: str) -> str:
    """Sends the file by SFTP, or through `cat` where the server has none. Says which."""
    try:
        async with await connection.open_session(connection.ssh.start_sftp_client) as sftp:
            await sftp.put(str(binary.path), temporary)
            return "sftp"
    except (asyncssh.ChannelOpenError, asyncssh.SFTPError):
        pass
    except (asyncssh.Error, OSError) as error:
        raise DeployError("deploy.failed", f"the upload failed: {reason(error)}", host=connection.host.name) from None
    async with _command_input(connection, f"cat > {shlex.quote(temporary)}") as process:
        with binary.path.open("rb") as file:
            while piece := file.read(_PIECE):
                process.stdin.write(piece)
                await process.stdin.drain()
        process.stdin.write_eof()
    return "cat"


@contextlib.asynccontextmanager
async def _command_input(connection: Connection, script: str) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
    """A command that is fed through its standard input. Raises DeployError unless it ends with 0."""
    try:
        process = await connection.start(f"sh -c {shlex.quote(script)}")
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended early; its status says why
                yield process
            done = await asyncio.wait_for(process.wait(), UPLOAD_SECONDS)
        finally:
            process.close()
    except (TimeoutError, asyncssh.Error, OSError) as error:
        raise DeployError("deploy.failed", f"the upload failed: {reason(error)}", host=connection.host.name) from None
    if done.exit_status != 0:
        stderr = done.stderr if isinstance(done.stderr, bytes) else b""
        raise DeployError(
            "deploy.failed", f"the upload failed: {_excerpt(stderr, done.exit_status)}", host=connection.host.name
        )


async def _verify(connection: Connection, binary: RunnerBinary, temporary: str) -> None:
    quoted = shlex.quote(temporary)
    printed = await _shell(
        connection,
        f"echo {_MARK}; if command -v sha256sum >/dev/null; then sha256sum {quoted}; "
        f"elif command -v openssl >/dev/null; then openssl dgst -sha256 {quoted}; "
        f"elif command -v shasum >/dev/null; then shasum -a 256 {quoted}; else echo none; fi",
    )
    digests = re.findall(r"\b[0-9a-f]{64}\b", printed.partition(f"{_MARK}\n")[2])
    if not digests:
        raise DeployError(
            "deploy.failed",
            "the upload cannot be verified: the host has none of sha256sum, openssl and shasum; install one",
            host=connection.host.name,
        )
    if digests[0] != binary.sha256:
        raise DeployError(
            "deploy.digest_mismatch",
            f"what arrived has SHA-256 {digests[0]}, sent was {binary.sha256}; try again",
            host=connection.host.name,
        )


async def _shell(connection: Connection, script: str, *, timeout: float = 30.0) -> str:
    """Runs a POSIX shell script on the host, whatever the login shell is. Raises DeployError unless it ends with 0."""
    done = await connection.run(f"sh -c {shlex.quote(script)}", timeout=timeout)
    if done.exit_status != 0:
        raise DeployError(
            "deploy.failed", _excerpt(done.stderr or done.stdout, done.exit_status), host=connection.host.name
        )
    return done.stdout.decode("utf-8", "replace")


def _read_binary(path: Path) -> RunnerBinary:
    digest = hashlib.sha256()
    sidecar = path.with_name(path.name + ".sha256")
    try:
        with path.open("rb") as file:
            while piece := file.read(1024 * 1024):
                digest.update(piece)
            size = file.tell()
        stated = sidecar.read_text("utf-8", "replace").split()[:1] if sidecar.exists() else [digest.hexdigest()]
    except OSError as error:
        raise ControllerError("binary.missing", f"the runner binary {path} cannot be read: {error.strerror}") from None
    if stated != [digest.hexdigest()]:
        raise DeployError(
            "deploy.digest_mismatch",
            f"{path} has SHA-256 {digest.hexdigest()}, which is not what {sidecar.name} says; build it again",
        )
    matched = _NAME.fullmatch(path.name)
    return RunnerBinary(
        path=path,
        version=matched["version"] if matched else "custom",
        machine=matched["arch"] if matched else os.uname().machine,
        sha256=digest.hexdigest(),
        size=size,
    )


def _excerpt(printed: bytes, exit_status: int | None) -> str:
    """The last words of a command, in one line."""
    text = " ".join(printed.decode("utf-8", "replace").split())
    status = "no exit status" if exit_status is None else f"exit status {exit_status}"
    return f"{text[-400:]} ({status})" if text else status
