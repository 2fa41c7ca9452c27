"""What PyInstaller's bootloader runs before the runner: every module of the binary is found in one file.

PyInstaller's own machinery, which this takes the place of, opens an archive anew for most modules, partly by code in
Python: a third of a small command's start. The build makes the file (`build/cronium-runner.spec`): the size of an index
in four bytes, the index, then marshalled code. The index is a marshalled mapping from a module's name to (is a package,
offset, size), or to the path of an extension module in the folder of the frozen application.

Runs as a script, without any import machinery but Python's own: only what is built in can be imported here.
"""

# ruff: noqa: S102, S302 - what is read is as much ours as the executable
import _imp
import posix
import sys
from marshal import loads

FILE = "runner.modules"
EXIT_STATUS = 125

_Spec = type(sys.__spec__)  # importlib.machinery is not imported yet


class Modules:
    """In front of all other finders of modules. Has the file open until `release`, and later for one read at a time."""

    def __init__(self, folder):
        self._folder = folder
        self._path = f"{folder}/{FILE}"
        self._descriptor = -1
        try:
            self._descriptor = self._open()
            size = int.from_bytes(posix.pread(self._descriptor, 4, 0), "big")
            self._index = loads(posix.pread(self._descriptor, size, 4))
            self._start = 4 + size
            whole = self._start + max(entry[1] + entry[2] for entry in self._index.values() if type(entry) is tuple)
            if posix.fstat(self._descriptor).st_size != whole:
                raise EOFError
        except (OSError, EOFError, ValueError, TypeError):
            self._damaged()

    def release(self):
        """Called when the program has what it needs at once: a supervisor closes all descriptors that it inherits."""
        posix.close(self._descriptor)
        self._descriptor = -1

    def find_spec(self, name, _path=None, _target=None):
        """As importlib.abc.MetaPathFinder."""
        entry = self._index.get(name)
        if entry is None:
            return None
        if type(entry) is str:
            spec = _Spec(name, Extension, origin=f"{self._folder}/{entry}")
        else:
            base = f"{self._folder}/{name.replace('.', '/')}"
            spec = _Spec(name, self, origin=f"{base}/__init__.py" if entry[0] else f"{base}.py", is_package=entry[0])
            if entry[0]:
                spec.submodule_search_locations = [base]
        spec.has_location = True
        return spec

    def create_module(self, spec):
        """As importlib.abc.Loader."""

    def exec_module(self, module):
        """As importlib.abc.Loader."""
        exec(self._code(module.__spec__.name), module.__dict__)

    def _code(self, name):
        _, offset, size = self._index[name]
        try:
            if self._descriptor != -1:
                return loads(posix.pread(self._descriptor, size, self._start + offset))
            descriptor = self._open()
            try:
                return loads(posix.pread(descriptor, size, self._start + offset))
            finally:
                posix.close(descriptor)
        except (OSError, EOFError, ValueError, TypeError) as error:
            if self._descriptor != -1:
                self._damaged()
            raise ImportError(f"{self._path} cannot be read: {error}", name=name) from error

    def _open(self):
        return posix.open(self._path, posix.O_RDONLY | posix.O_CLOEXEC)

    def _damaged(self):
        """What `install.check` says of a damaged file: without this one there is no such module."""
        said = f"cronium-runner: {self._path} is not as it was installed; nothing was started; install the runner again"
        posix.write(2, f"{said}, as `cronium deploy` does [install.damaged]\n".encode())
        posix._exit(EXIT_STATUS)


class Extension:
    """The loader of modules that are shared libraries."""

    create_module = staticmethod(_imp.create_dynamic)
    exec_module = staticmethod(_imp.exec_dynamic)


sys.frozen = True
sys.meta_path.insert(0, Modules(sys._MEIPASS))
