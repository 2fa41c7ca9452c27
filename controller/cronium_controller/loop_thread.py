"""An event loop in a thread: for callers that have none, and for those that may not wait in theirs (Jupyter)."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    """Runs until `close`, or until the process ends."""

    def __init__(self, name: str) -> None:
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns, or raises; blocks. An exception here, such as KeyboardInterrupt, cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends what still runs, and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:  # at its end tasks are cancelled and generators closed
            self._loop = runner.get_loop()
            asyncio.set_event_loop(self._loop)
            self._is_ready.set()
            self._loop.run_forever()
