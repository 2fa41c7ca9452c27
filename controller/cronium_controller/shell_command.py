"""One command in sh on a host, as copies need it: input sent as it is taken, output handed over as it comes.

What rc files print before is left out. However much the host prints, and on whichever stream, nothing of it is kept but
the last words of standard error; a host that says nothing is given up.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from typing import Final

from cronium_runner.wire.text import last_words

from . import remote_shell, sftp
from .errors import ControllerError, UnreachableError
from .sessions import Channel, Connection, DataType, Session

NOISE: Final = 1024 * 1024
"""Bytes that rc files may print before what was asked for."""
_WORDS: Final = 4096
"""Bytes of standard error that are kept: its end says why a command failed."""

Take = Callable[[bytes], None]
"""Called with each piece of output. What it raises ends the command."""


class NoShellError(ControllerError):
    """Nothing that reads sh answers to commands there."""


async def run(
    connection: Connection, script: str, path: str, take: Take, *, pieces: Iterable[bytes] = (), seconds: float = 0.0
) -> None:
    """Runs a script to its end. `pieces` are its standard input.

    `seconds` is how much longer than usual it may say nothing. Raises ControllerError (`files.refused`) about `path`
    when it fails, NoShellError when it was never started, UnreachableError when the connection ends or says nothing.
    """
    heard = _Heard(connection, take, sftp.ANSWER_SECONDS + seconds)
    text = remote_shell.in_sh(f"echo {heard.mark}; {script}")
    if "\0" in text:  # a server ends the whole connection when it meets one
        raise sftp.refused(connection, path, "its path has a NUL byte")
    try:
        await sftp.answer(connection, connection.open_session(lambda: connection.create_session(lambda: heard, text)))
        await heard.send(pieces)
        await heard.wait()
    finally:
        heard.close()
    status, words = heard.status, heard.last_words
    if status is None:
        raise UnreachableError("channel.lost", "the connection ended during the copy", host=connection.host.name)
    if not heard.is_marked:
        raise _no_shell(connection, words or f"exit status {status}")
    if status != 0:
        raise sftp.refused(connection, path, words or f"exit status {status}")


def _no_shell(connection: Connection, why: str) -> NoShellError:
    sentence = f"the host has no SFTP, and no shell answers to commands: {why}"
    return NoShellError("files.refused", sentence, host=connection.host.name)


class _Heard(Session):
    """What is heard of a command."""

    def __init__(self, connection: Connection, take: Take, seconds: float) -> None:
        self.mark = secrets.token_hex(8)
        self.is_marked = False
        self.status: int | None = None
        self._connection = connection
        self._take = take
        self._seconds = seconds
        self._noise = bytearray()
        self._words = b""
        self._failure: Exception | None = None
        self._over = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._channel: Channel | None = None
        self._note()

    @property
    def last_words(self) -> str:
        """The last line of standard error, for a message."""
        lines = [line for line in self._words.splitlines() if line.strip()]
        return last_words(lines[-1], 200) if lines else ""

    def connection_made(self, chan: Channel) -> None:
        """It may have been started."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: DataType) -> None:
        """A piece of output."""
        if datatype is not None:
            self._words = (self._words + data)[-_WORDS:]
        elif self._failure is None:
            self._note()
            try:
                self._hear(data)
            except Exception as error:  # noqa: BLE001 - raised by `wait`
                self._failure = error
                self._end()

    def _hear(self, data: bytes) -> None:
        if self.is_marked:
            self._take(data)
            return
        self._noise += data
        _, found, after = bytes(self._noise).partition(f"{self.mark}\n".encode())
        self.is_marked = bool(found)
        if after:
            self._take(after)
        if not self.is_marked and len(self._noise) > NOISE:
            raise _no_shell(self._connection, "it prints without end")

    def exit_status_received(self, status: int) -> None:
        """It ended by itself."""
        self.status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """A signal ended it."""
        del core_dumped, msg, lang
        self.status = 128
        self._words += f"\nended by signal {signal[:20]}".encode()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, with the command's end or without."""
        del exc
        self._end()

    def pause_writing(self) -> None:
        """It is slow to read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It takes more."""
        self._writable.set()

    def _end(self) -> None:
        self._over.set()
        self._writable.set()

    def _note(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    async def _until(self, event: asyncio.Event) -> None:
        while not event.is_set():
            left = self._heard_at + self._seconds - asyncio.get_running_loop().time()
            if left <= 0:
                raise sftp.silent(self._connection, self._seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await event.wait()

    async def send(self, pieces: Iterable[bytes]) -> None:
        """Sends its standard input, and ends it. When it ended early, its status says why."""
        assert self._channel is not None, "it was opened"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                if self._over.is_set():
                    return
                self._channel.write(piece)
                await self._until(self._writable)
                self._note()
                await asyncio.sleep(0)  # where all is taken at once, others have their turn, too
            self._channel.write_eof()

    async def wait(self) -> None:
        """Its end. Raises what `take` raised."""
        await self._until(self._over)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Lets go of it."""
        if self._channel is not None:
            self._channel.close()
