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

from cronium_runner.wire import codes
from cronium_runner.wire.names import INSTALL_ROOT

from .channel import AgentChannel, AgentNotStartedError
from .connection import Connection
from .errors import ControllerError, DeployError, RefusedError, reason

MACHINES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
UPLOAD_SECONDS: Final = 300.0
INSTALL_SECONDS: Final = 60.0
HAND_OVER_SECONDS: Final = 180.0
"""For an agent of another account, whose first one also waits for sudo and for a runner to be installed there."""
_PIECE: Final = 256 * 1024
_SFTP_PIECE: Final = 32 * 1024
"""What every SFTP server takes in one request."""
_IN_FLIGHT: Final = 64
"""Requests without an answer yet, as OpenSSH's own client has: 2 MiB, enough for 160 Mbit/s at 100 ms."""
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


async def start_agent(
    connection: Connection, runners: Runners, run_as: str | None = None
) -> tuple[AgentChannel, Deployment | None]:
    """An agent on the host; the runner is deployed first when it isn't there.

    `run_as` is the account that it becomes the agent of. Raises DeployError, and RefusedError when it may not.
    """
    host = connection.host.name
    for binary in runners.likely()[:1]:
        try:
            return await _open_agent(connection, runners, binary, run_as), None
        except AgentNotStartedError as error:
            if run_as is not None:
                _refuse_account(error, host)
    deployment, binary = await deploy(connection, runners)
    try:
        return await _open_agent(connection, runners, binary, run_as), deployment
    except AgentNotStartedError as error:
        if run_as is not None:
            _refuse_account(error, host)
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
    # A connection that was cut has left its upload behind; an hour later it is certainly nobody's any more.
    sweep = (
        f"find {root} -maxdepth 1 \\( -name '.upload-*' -o -name '*.tmp' \\) -mmin +60 -exec rm -rf {{}} + 2>/dev/null"
    )
    looked = await _shell(connection, f"echo {_MARK}; uname -sm; mkdir -p -m 700 {root} && {{ {sweep}; ls {root}; }}")
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
        # One script, so that the upload goes also when the connection is lost meanwhile.
        install = f"chmod 700 {quoted} && {quoted} install {target}; status=$?; rm -f {quoted}; exit $status"
        await _shell(connection, install, timeout=INSTALL_SECONDS)
    except BaseException:
        with contextlib.suppress(ControllerError):
            await _shell(connection, f"rm -f {shlex.quote(temporary)}")
        raise
    _log.info("runner_deployed", extra={"host": host, "version": binary.version, "method": method})
    return Deployment(path, binary.size, method), binary


async def _open_agent(
    connection: Connection, runners: Runners, binary: RunnerBinary, run_as: str | None
) -> AgentChannel:
    # `exec PATH agent` means the same in sh, bash, dash, zsh, fish and csh; sshd starts it in the home directory.
    command = f"exec {shlex.quote(f'{runners.root}/{binary.folder}/cronium-runner')} agent"
    if run_as is None:
        return await AgentChannel.open(connection, command)
    return await AgentChannel.open(connection, f"{command} --run-as {shlex.quote(run_as)}", HAND_OVER_SECONDS)


def _refuse_account(error: AgentNotStartedError, host: str) -> None:
    """Raises RefusedError when the runner is there and said why it did not become somebody else's agent."""
    told = codes.told(error.printed.decode("utf-8", "replace"))
    if told is not None:
        raise RefusedError(*told, host=host) from None


async def _upload(connection: Connection, binary: RunnerBinary, temporary: str) -> str:
    """Sends the file by SFTP, or through `cat` where the server has none. Says which."""
    try:
        async with await connection.open_session(connection.ssh.start_sftp_client) as sftp:
            await _put(sftp, binary.path, temporary)
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


async def _put(sftp: asyncssh.SFTPClient, source: Path, target: str) -> None:
    """Writes a file, many requests in flight. asyncssh's own `put` lets them cry out when the connection is lost."""
    async with sftp.open(target, "wb", block_size=0) as there:
        with source.open("rb") as file:

            async def write_some() -> None:
                while piece := file.read(_SFTP_PIECE):
                    await there.write(piece, file.tell() - len(piece))

            for written in await asyncio.gather(*[write_some() for _ in range(_IN_FLIGHT)], return_exceptions=True):
                if isinstance(written, BaseException):
                    raise written


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
