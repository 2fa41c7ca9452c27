"""What an agent and `run` import, read from one file of the binary instead of from its archives.

Those are opened anew for each module, some of them by code in Python: a sixth of an agent's start. The build writes the
file (`build/cronium-runner.spec`); where there is none, or something isn't in it, modules are found as ever.
"""

import marshal
import os
import sys

TYPE_CHECKING = False  # typing's own would be the first thing to wait for
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Final

FILE: "Final" = "agent.modules"
"""In the folder of the frozen application: the index's size in four bytes, the index, and then marshalled code.

The index is a marshalled mapping from a module's name to (path below that folder, is a package, offset, size).
"""


class Preloaded:
    """For the duration of a `with` block, found before everything else."""

    def __init__(self) -> None:
        self._index: dict[str, tuple[str, bool, int, int]] = {}
        self._descriptor = -1

    def __enter__(self) -> None:
        self._folder = getattr(sys, "_MEIPASS", None)
        if self._folder is None:  # not frozen
            return
        try:
            self._descriptor = os.open(f"{self._folder}/{FILE}", os.O_RDONLY | os.O_CLOEXEC)
            size = int.from_bytes(os.pread(self._descriptor, 4, 0), "big")
            self._index = marshal.loads(os.pread(self._descriptor, size, 4))  # noqa: S302 - as much ours as the executable
            self._start = 4 + size
            _, _, last, length = max(self._index.values(), key=lambda entry: entry[2])
            if os.fstat(self._descriptor).st_size != self._start + last + length:
                raise EOFError
        except (OSError, EOFError, ValueError, TypeError):  # damaged, which `install.check` says a moment later
            self._index = {}
            return
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        """Whoever imports later may have no such descriptor any more: a supervisor closes all that it inherits."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._descriptor != -1:
            os.close(self._descriptor)

    def find_spec(
        self, name: str, _path: "Sequence[str] | None" = None, _target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """As importlib.abc.MetaPathFinder."""
        if name not in self._index:
            return None
        path, is_package, offset, size = self._index[name]
        try:
            code = marshal.loads(os.pread(self._descriptor, size, self._start + offset))  # noqa: S302 - as above
        except (EOFError, ValueError, TypeError):  # damaged as well: the archives have it, and the check says so
            self._index = {}
            return None
        origin = f"{self._folder}/{path}"
        make = type(sys.__spec__)  # importlib.machinery is not imported yet
        spec: ModuleSpec = make(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        spec.loader_state = code
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]  # of modules that are not preloaded
        return spec

    def create_module(self, _spec: "ModuleSpec") -> None:
        """As importlib.abc.Loader."""

    def exec_module(self, module: "ModuleType") -> None:
        """As importlib.abc.Loader."""
        assert module.__spec__ is not None
        exec(module.__spec__.loader_state, module.__dict__)  # noqa: S102
        module.__spec__.loader_state = None
