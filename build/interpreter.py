"""Where the files of the Python are that a runner binary has: standard library, extension modules, shared libraries.

It is either that of Debian's packages for an architecture, or the one that runs the build.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NAME = f"python{sys.version_info[0]}.{sys.version_info[1]}"
LIBRARY = f"lib{NAME}.so.1.0"


@dataclass(frozen=True)
class Interpreter:
    """A Python of an architecture. `folders` are searched for shared libraries, that of Python among them."""

    architecture: str
    standard_library: Path
    extensions: Path
    folders: tuple[Path, ...]
    is_stripped: bool
    """Whether its files have no symbols that only a debugger needs."""

    def source(self, path: str) -> Path:
        """The file that this Python has for a module's file of the Python that runs the build."""
        own = sysconfig.get_path("stdlib")
        relative = os.path.relpath(path, own)
        is_own = not relative.startswith("..") and not relative.startswith("site-packages")
        return self.standard_library / relative if is_own else Path(path)

    def extension(self, name: str) -> Path | None:
        """The file of an extension module; None for one that the library has built in. Raises SystemExit."""
        path = self.extensions / f"{name}.cpython-{NAME[6:].replace('.', '')}-{self.architecture}-linux-gnu.so"
        if path.exists():
            return path
        if name in self.built_in():
            return None
        raise SystemExit(f"there is no module {name} for {self.architecture}: neither {path} nor in {LIBRARY}")

    def built_in(self) -> set[str]:
        """The modules that are in Python's library itself, by the functions that it has for starting them."""
        shown = output(["objdump", "-T", str(self.library(LIBRARY))])
        names = {line.split()[-1] for line in shown.splitlines() if "PyInit_" in line}
        return {name.removeprefix("PyInit_") for name in names} | {"sys", "builtins", "marshal", "_warnings"}

    def library(self, name: str) -> Path:
        """The file of a shared library. Raises SystemExit."""
        for folder in self.folders:
            if (folder / name).exists():
                return (folder / name).resolve()
        raise SystemExit(f"{name} is in none of {', '.join(map(str, self.folders))}")


def of_packages(root: Path, architecture: str) -> Interpreter:
    """The Python of Debian's packages, unpacked in `root`."""
    python = root / "usr" / "lib" / NAME
    folders = [root / folder / f"{architecture}-linux-gnu" for folder in ("usr/lib", "lib")]
    return Interpreter(architecture, python, python / "lib-dynload", tuple(folders), is_stripped=True)


def of_this_machine(architecture: str, libraries: Iterable[str]) -> Interpreter:
    """The Python that runs this, and this machine's libraries. `libraries` are files that PyInstaller has found."""
    own = [str(Path(path).parent) for path in libraries]
    usual = [f"/lib/{architecture}-linux-gnu", f"/usr/lib/{architecture}-linux-gnu", "/lib64", "/usr/lib64"]
    return Interpreter(
        architecture,
        Path(sysconfig.get_path("stdlib")),
        Path(sysconfig.get_config_var("DESTSHARED")),
        tuple(Path(name) for name in dict.fromkeys([*own, *usual, "/lib", "/usr/lib"])),
        is_stripped=False,
    )


def output(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
