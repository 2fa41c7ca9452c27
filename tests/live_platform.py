"""The real runtime API for tests of the runner: on a unix socket of this process, with the real store behind it."""

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cronium_controller.api.app import RuntimeApi
from cronium_controller.api.issue import issue
from cronium_controller.api.limits import Limits
from cronium_controller.api.serve import serving, unix_listener
from cronium_controller.api.tokens import Tokens, load_key
from cronium_controller.api.tools import ToolCaller, ToolError
from cronium_controller.platform_store import LiveExecution, PlatformStore


class _Echo:
    """A tool that answers what it was asked, and fails for the action `fail`."""

    async def execute(self, action: str, params: Mapping[str, Any], _caller: ToolCaller) -> Any:
        if action == "fail":
            raise ToolError("it broke")
        return {"action": action, "params": dict(params)}


class LivePlatform:
    """A platform that serves until `close`; `down` takes its socket away for a while."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self._limits = limits
        self.store = PlatformStore(f"sqlite:///{folder}/live.db")
        self._tokens = Tokens(load_key(folder / "api.key"))
        self._sockets = tempfile.TemporaryDirectory(prefix="cronium-platform-")
        self._path = os.path.join(self._sockets.name, "p.api")
        self.endpoint = f"unix://{self._path}"
        self._stop: asyncio.Event | None = None
        self.up()

    def up(self) -> None:
        """Listens."""
        is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(is_up)))
        self._thread.start()
        assert is_up.wait(30)

    def down(self) -> None:
        """Listens no more; nothing is where the socket was."""
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """Ends it."""
        if self._thread.is_alive():
            self.down()
        self.store.close()
        self._sockets.cleanup()

    def environment(self, execution: str, user: str = "default", **more: Any) -> dict[str, str]:
        """What makes `cronium-runner run` use this platform for an execution."""
        return {
            "CRONIUM_EXECUTION_ID": execution,
            "CRONIUM_API_ENDPOINT": self.endpoint,
            "CRONIUM_API_TOKEN": self.token(execution, user, **more),
        }

    def token(self, execution: str, user: str = "default", **more: Any) -> str:
        """A token for an execution, which is made known."""
        known = LiveExecution(execution, user, **more)
        return issue(self.store, self._tokens, known, timeout=600, actor="test").token

    async def _serve(self, is_up: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = RuntimeApi(self.store, self._tokens, tools={"echo": _Echo()}, limits=self._limits)
        async with serving(app, unix_listener(self._path)):
            is_up.set()
            await self._stop.wait()


@contextlib.contextmanager
def platform(folder: Path, limits: Limits | None = None) -> Iterator[LivePlatform]:
    """A platform for as long as the block runs."""
    made = LivePlatform(folder, limits)
    try:
        yield made
    finally:
        made.close()


_CONTEXT: Mapping[str, str] = {"id": "eventId", "name": "eventName", "type": "eventType"}


def context_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event as a context, without what the platform itself says: who the user is."""
    return {_CONTEXT.get(name, name): value for name, value in event.items() if name != "user"}
