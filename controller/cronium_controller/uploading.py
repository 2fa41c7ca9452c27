"""A file onto a host: by SFTP, or through the shell where there is none; checked by its SHA-256.

One attempt each. How often it is tried, and what is recorded of that, is `install`'s matter.
"""

import asyncio
import re
import shlex
from pathlib import Path
from typing import Final

from cronium_runner.wire.text import last_words

from .errors import DeployError, FinalDeployError, LoginShellError, UnreachableError, reason
from .runners import RunnerBinary
from .sessions import Connection
from .ssh_library import asyncssh
from .stalls import NoProgressError, Progress, while_it_progresses

UPLOAD_SECONDS: Final = 300.0
PROBE_SECONDS: Final = 5.0
"""How long a connection over which an upload has stalled may take to answer, at the end of the upload's time."""
MARK: Final = "cronium:"
"""Printed before what we want to read: whatever rc files have printed comes before it."""
_PIECE: Final = 256 * 1024
_SFTP_PIECE: Final = 32 * 1024
"""What every SFTP server takes in one request."""
_IN_FLIGHT: Final = 64
"""Requests without an answer yet, as OpenSSH's own client has: 2 MiB, enough for 160 Mbit/s at 100 ms."""


async def upload(
    connection: Connection, binary: RunnerBinary, temporary: str, progress: Progress, stall_seconds: float
) -> str:
    """Sends the file by SFTP, or through `cat` where the server has none. Says which.

    Without an acknowledged byte for `stall_seconds` it is given up, and a connection that no longer answers is closed.
    Raises DeployError.
    """
    probing = min(PROBE_SECONDS, stall_seconds / 6)
    own = Progress(progress)
    try:
        return await while_it_progresses(
            _upload(connection, binary, temporary, own),
            own,
            stall_seconds - probing,
            lambda: own.note_waiting(connection.unacknowledged()),
        )
    except NoProgressError:
        await _end_if_dead(connection, probing)
        sentence = f"the upload stalled: the host acknowledged nothing for {stall_seconds:g} s"
        raise DeployError("deploy.failed", sentence, host=connection.host.name) from None


async def _end_if_dead(connection: Connection, seconds: float) -> None:
    """Closes a connection that answers nothing, so that the next attempt makes another. Others may use it still."""
    try:
        await asyncio.wait_for(connection.run("true"), seconds)  # opening the session may be what hangs
    except (TimeoutError, UnreachableError, asyncssh.Error):
        connection.abort()


async def _upload(connection: Connection, binary: RunnerBinary, temporary: str, progress: Progress) -> str:
    try:
        if connection.has_sftp:
            async with await connection.open_session(connection.start_sftp) as sftp:
                await _put(sftp, binary.path, temporary, progress)
                return "sftp"
    except (asyncssh.ChannelOpenError, asyncssh.SFTPError):
        pass
    except (asyncssh.Error, OSError) as error:
        raise DeployError("deploy.failed", f"the upload failed: {reason(error)}", host=connection.host.name) from None
    await _feed(connection, f"cat > {shlex.quote(temporary)}", binary.path, progress)
    return "cat"


async def _put(sftp: "asyncssh.SFTPClient", source: Path, target: str, progress: Progress) -> None:
    """Writes a file, many requests in flight. asyncssh's own `put` lets them cry out when the connection is lost."""
    async with sftp.open(target, "wb", block_size=0) as there:
        with source.open("rb") as file:

            async def write_some() -> None:
                while piece := file.read(_SFTP_PIECE):
                    await there.write(piece, file.tell() - len(piece))
                    progress.note()

            for written in await asyncio.gather(*[write_some() for _ in range(_IN_FLIGHT)], return_exceptions=True):
                if isinstance(written, BaseException):
                    raise written


async def _feed(connection: Connection, script: str, source: Path, progress: Progress) -> None:
    """Has a command read a file from its standard input. Raises DeployError unless it ends with 0."""
    try:
        async with connection.short_command(f"sh -c {shlex.quote(script)}", UPLOAD_SECONDS) as running:
            with source.open("rb") as file:
                while (piece := file.read(_PIECE)) and await running.write(piece):
                    progress.note()  # when it ended early, its status says why
            running.write_eof()
            done = await running.output()
    except LoginShellError:
        raise
    except UnreachableError as error:
        why = error.message.removeprefix(f"{connection.host.name}: ")
        raise DeployError("deploy.failed", f"the upload failed: {why}", host=connection.host.name) from None
    if done.exit_status != 0:
        raise DeployError(
            "deploy.failed",
            f"the upload failed: {excerpt(done.stderr, done.exit_status)}",
            host=connection.host.name,
        )


async def verify(connection: Connection, binary: RunnerBinary, temporary: str) -> None:
    quoted = shlex.quote(temporary)
    printed = await shell(
        connection,
        f"echo {MARK}; if command -v sha256sum >/dev/null; then sha256sum {quoted}; "
        f"elif command -v openssl >/dev/null; then openssl dgst -sha256 {quoted}; "
        f"elif command -v shasum >/dev/null; then shasum -a 256 {quoted}; else echo none; fi",
    )
    digests = re.findall(r"\b[0-9a-f]{64}\b", printed.partition(f"{MARK}\n")[2])
    if not digests:
        raise FinalDeployError(
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


async def shell(connection: Connection, script: str, *, timeout: float = 30.0) -> str:
    """Runs a POSIX shell script on the host, whatever the login shell is. Raises DeployError unless it ends with 0."""
    done = await connection.run(f"sh -c {shlex.quote(script)}", timeout=timeout)
    if done.exit_status != 0:
        raise DeployError(
            "deploy.failed", excerpt(done.stderr or done.stdout, done.exit_status), host=connection.host.name
        )
    return done.stdout.decode("utf-8", "replace")


def excerpt(printed: bytes, exit_status: int | None) -> str:
    """The last words of a command, in one line."""
    text = last_words(printed)
    status = "no exit status" if exit_status is None else f"exit status {exit_status}"
    return f"{text} ({status})" if text else status
