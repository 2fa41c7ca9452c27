"""The connections that all clients of this process share, one pool for each event loop and way of reaching hosts.

A pool ends with its event loop: `asyncio.run` and `asyncio.Runner` close what is open at the end of their loop. Other
loops may be closed without that; their connections are forgotten, and so closed, when the next client asks.
"""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Hashable
from dataclasses import dataclass, field
from typing import Any

from .access import Access
from .connections import Connections, Way, way_to
from .hosts import Host
from .memory import Memory


@dataclass(eq=False, slots=True)
class _Shared:
    """One pool, who has used it, and what closes it at the end of its loop."""

    connections: Connections
    users: dict[Way, "weakref.WeakSet[Any]"] = field(default_factory=dict)
    keeper: AsyncGenerator[None, None] | None = None


_pools: dict[tuple[asyncio.AbstractEventLoop, Hashable], _Shared] = {}
_lock = threading.Lock()


def connections_for(
    user: Any, host: Host, access: Access, memory: Memory, *, owner: object | None = None
) -> Connections:
    """The connections of the running loop that `user` reaches a host over, until it calls `leave`.

    They are shared by all who ask with an equal `access` and the same `owner`.
    """
    loop = asyncio.get_running_loop()
    with _lock:
        shared = _pools.get(key := (loop, (access, owner)))
        if shared is None:
            for ended in [known for known in _pools if known[0].is_closed()]:
                del _pools[ended]
            shared = _pools[key] = _Shared(Connections(access, memory))
            shared.keeper = _kept(key, shared.connections)
            with contextlib.suppress(StopIteration):  # it waits for the loop's end at once
                shared.keeper.asend(None).send(None)
        shared.users.setdefault(way_to(host), weakref.WeakSet()).add(user)
        return shared.connections


async def leave(user: Any) -> None:
    """Closes the connections that `user` has used and no other client has, in use or not, in whichever loop."""
    here = asyncio.get_running_loop()
    for (loop, _), shared in list(_pools.items()):
        ways = []
        for way, users in list(shared.users.items()):
            if user in users:
                users.discard(user)
                if not users:
                    del shared.users[way]
                    ways.append(way)
        for way in ways:
            closing = shared.connections.close(way)
            if loop is here:
                await closing
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(closing, loop))
            else:
                closing.close()
        if ways:
            shared.connections.memory.save()


async def _kept(
    key: tuple[asyncio.AbstractEventLoop, Hashable], connections: Connections
) -> AsyncGenerator[None, None]:
    """Closes connections when the loop's end closes its asynchronous generators."""
    try:
        yield
    finally:
        _pools.pop(key, None)
        await connections.close_all_connections()
