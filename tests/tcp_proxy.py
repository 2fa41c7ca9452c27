"""A TCP proxy on the loopback interface for tests: it counts bytes, delays them, and cuts connections."""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self


class TcpProxy:
    """Passes connections on to a port of this machine. Lives in the test's event loop."""

    def __init__(self, target_port: int, *, delay: float = 0.0) -> None:
        self.delay = delay
        """Seconds that each piece waits, in each direction."""
        self.connections = 0
        self.sent_bytes = 0
        """Bytes from the clients to the target."""
        self.cut_in: int | None = None
        """Bytes from the target that clients still get before all connections are reset, once."""
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
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

    def cut(self) -> None:
        """Resets all connections, as a firewall that has forgotten them does."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError):
                tcp = writer.get_extra_info("socket")
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers |= {writer, there_writer}
        for one, other, is_ours in ((reader, there_writer, True), (there_reader, writer, False)):
            task = asyncio.ensure_future(self._pump(one, other, is_ours=is_ours))
            self._tasks.add(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_ours: bool) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                if is_ours:
                    self.sent_bytes += len(piece)
                elif self.cut_in is not None:
                    self.cut_in -= len(piece)
                    if self.cut_in < 0:
                        self.cut_in = None
                        self.cut()
                        return
                if self.delay:
                    loop.call_later(self.delay, writer.write, piece)
                else:
                    writer.write(piece)
                    await writer.drain()
        writer.transport.abort() if self.delay else writer.close()
