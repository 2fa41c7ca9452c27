"""The database of a program that has clients and no controller: what they learn of hosts is kept for later processes.

One connection a process to each database, opened when it is first needed, shared by all threads. A database that can't
be used is no reason for a command to fail: then nothing is remembered, and that is logged once.
"""

import atexit
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from .errors import StoreError
from .logs import logger

if TYPE_CHECKING:
    from .health import HostHealth
    from .memory import Memory
    from .store import Store

_T = TypeVar("_T")
_log = logger("cronium.health")


class OwnStore:
    """Health of hosts in one database.

    Its calls are made inline and take well under a millisecond. They raise StoreError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def health(self, account: str) -> "HostHealth | None":
        """As `Store.health`."""
        return self._on(lambda store: store.health(account))

    def note_health(self, account: str, known: "HostHealth", successes: int, failures: int) -> None:
        """As `Store.note_health`."""
        self._on(lambda store: store.note_health(account, known, successes, failures))

    def _on(self, call: "Callable[[Store], _T]") -> _T | None:
        return _open.on(self._path, call)


class _Open:
    """The databases of this process that are open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[tuple[int, Path], Store | None] = {}
        """By process, as a child must not use its parent's, and by path; None where it can't be used."""
        self._memories: dict[tuple[int, Path], Memory] = {}
        """By process and path, too: clients of one database have one memory."""
        atexit.register(self._end)

    def on(self, path: Path, call: "Callable[[Store], _T]") -> _T | None:
        with self._lock:
            store = self._store(path)
            return None if store is None else call(store)

    def memory(self, path: Path) -> "Memory":
        from .memory import Memory

        with self._lock:
            return self._memories.setdefault((os.getpid(), path), Memory(OwnStore(path)))

    def _store(self, path: Path) -> "Store | None":
        from .store import Store

        key = os.getpid(), path
        if key not in self._stores:
            try:
                self._stores[key] = Store(path)
            except StoreError as error:
                _log.warning("health_not_kept", extra={"reason": error.message})
                self._stores[key] = None
        return self._stores[key]

    def _end(self) -> None:
        for (process, _), memory in list(self._memories.items()):
            if process == os.getpid():
                memory.save()
        with self._lock:
            for (process, _), store in self._stores.items():
                if store is not None and process == os.getpid():
                    store.close()
            self._stores.clear()


_open: Final = _Open()


def own_memory() -> "Memory":
    """What the calls of all processes have shown of hosts; what is not yet written is when this process ends.

    The same one for each database, which is the default one, whichever that is now.
    """
    from .state_path import default_path

    return _open.memory(default_path())
