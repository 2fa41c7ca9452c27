"""A TCP proxy on the loopback interface for tests: it counts bytes and turns, and cuts connections.

A cut is a reset, as by a firewall that has forgotten the connection; an end, as by a peer that was shut down; or a
hole, as by a cable that was pulled: nothing passes any more, and nobody is told.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Cut = Literal["reset", "fin", "hole"]
CUTS: tuple[Cut, ...] = ("reset", "fin", "hole")


@dataclass(slots=True)
class _Plan:
    """Cut in the way of `how` as soon as `left` more bytes have passed in one direction."""

    left: int
    how: Cut
    is_sent: bool


@dataclass(eq=False, slots=True)
class _Pair:
    """One connection: the writers to both of its ends."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    is_cut: bool = False
    """Nothing passes any more; reset, ended or left in the dark, as was asked for."""


class TcpProxy:
    """Passes connections on to a port of this machine. Lives in the test's event loop."""

    def __init__(self, target_port: int) -> None:
        self.connections = 0
        self.turns = 0
        """How often a client has spoken first, or after the target: at least so many round trips."""
        self._was_sent = False
        self.sent_bytes = 0
        """Bytes from the clients to the target."""
        self.received_bytes = 0
        """Bytes from the target to the clients."""
        self.cuts = 0
        """How often connections were cut as planned."""
        self._plan: _Plan | None = None
        self._target_port = target_port
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def cut_in(self) -> int | None:
        """Bytes from the target that clients still get before all connections are reset, once."""
        return None if self._plan is None else self._plan.left

    @cut_in.setter
    def cut_in(self, count: int | None) -> None:
        self._plan = None
        if count is not None:
            self.cut_after(count)

    def cut_after(self, count: int, how: Cut = "reset", *, is_sent: bool = False) -> None:
        """Cuts all connections, once, when `count` more bytes have passed; `is_sent`: of those the clients send."""
        self._plan = _Plan(count, how, is_sent)

    def cut(self, how: Cut = "reset") -> None:
        """Cuts all connections now. Those that come later are served."""
        for pair in list(self._pairs):
            pair.is_cut = True
            for writer in pair.writers:
                with contextlib.suppress(OSError):
                    _cut(writer, how)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair([writer])
        self._pairs.add(pair)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:  # nobody there any more
            writer.close()
            return
        pair.writers.append(there_writer)
        for each in pair.writers:
            each.transport.set_write_buffer_limits(0)  # what counts as passed has left us before a reset can drop it
        for one, other, is_sent in ((reader, there_writer, True), (there_reader, writer, False)):
            self._tasks.add(asyncio.ensure_future(self._pump(pair, one, other, is_sent=is_sent)))

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_sent: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if pair.is_cut:
                    return
                passed = self._allowed(piece, is_sent=is_sent)
                self.turns += is_sent and not self._was_sent
                self._was_sent = is_sent
                writer.write(passed)
                await writer.drain()
                if self._has_come(is_sent=is_sent):
                    return
        if not pair.is_cut:
            writer.close()

    def _allowed(self, piece: bytes, *, is_sent: bool) -> bytes:
        """What of the piece passes before the planned cut. Counted."""
        if self._plan is not None and self._plan.is_sent == is_sent:
            piece = piece[: self._plan.left]
            self._plan.left -= len(piece)
        if is_sent:
            self.sent_bytes += len(piece)
        else:
            self.received_bytes += len(piece)
        return piece

    def _has_come(self, *, is_sent: bool) -> bool:
        """Does the planned cut, if its moment has come in this direction; whether it had."""
        if self._plan is None or self._plan.is_sent != is_sent or self._plan.left > 0:
            return False
        how, self._plan = self._plan.how, None
        self.cuts += 1
        self.cut(how)
        return True


def _cut(writer: asyncio.StreamWriter, how: Cut) -> None:
    match how:
        case "reset":
            tcp = writer.get_extra_info("socket")
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        case "fin":
            writer.write_eof()
        case "hole":
            pass
