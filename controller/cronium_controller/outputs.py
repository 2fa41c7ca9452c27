"""The output of a script, fetched from its host when a program asks for it: `await result.stdout.text()`.

The host keeps it until the record's retention ends. Nothing is fetched before it is asked for.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from cronium_runner.wire.frames import BEHIND_ALL
from cronium_runner.wire.names import STDERR, STDOUT
from cronium_runner.wire.results import Result, StreamSummary

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import Host

MOST_FETCHED: Final = 16 * 1024 * 1024
"""Bytes of a stream that are fetched unless the caller sets another limit: as much as a raw command's result holds."""
Fetch = Callable[[int], Awaitable[bytes]]
"""Fetches at most so many bytes."""


class OutputStream(StreamSummary):
    """One stream of a result: how much there is, and the way to it while the controller is open."""

    _fetch: Fetch

    async def bytes(self, limit: int = MOST_FETCHED) -> bytes:
        """The first `limit` bytes (16 MiB), as the script wrote them. Raises as `Controller.attach` does."""
        return await self._fetch(min(limit, self.size)) if self.size else b""

    async def text(self, limit: int = MOST_FETCHED) -> str:
        """The same as text; bytes that aren't UTF-8 are replaced."""
        return (await self.bytes(limit)).decode("utf-8", "replace")


def with_output(controller: "Controller", host: "Host", result: Result) -> Result:
    """A result whose streams can be read."""

    stdout, stderr = OutputStream._make(result.stdout), OutputStream._make(result.stderr)
    stdout._fetch = partial(fetched, controller, result.execution_id, host, STDOUT)
    stderr._fetch = partial(fetched, controller, result.execution_id, host, STDERR)
    return result._replace(stdout=stdout, stderr=stderr)


async def fetched(controller: "Controller", execution_id: str, host: "Host", stream: int, limit: int) -> bytes:
    """The first bytes of one stream of an execution. Raises as `Controller.attach` does."""
    from .errors import ChannelLostError

    offsets = (0, BEHIND_ALL[1]) if stream == STDOUT else (BEHIND_ALL[0], 0)
    execution = await controller.attach(execution_id, host, offsets=offsets, follow=False)
    found = bytearray()
    try:
        async for piece in execution.pieces():
            if piece.stream == stream:
                found += piece.data
            if len(found) >= limit:
                break
    finally:
        if execution.is_running:
            execution.detach()
    if len(found) < limit:
        raise ChannelLostError("the connection ended before all of the output had arrived", host=host.name)
    return bytes(found[:limit])
