"""Writes the Python part of a runner binary's files: its modules, and the archive that PyInstaller's bootloader reads.

All modules are in one file (see boot.py). The bootloader's archive has options, boot.py and the program; the standard
library's `base_library.zip` only what Python imports before it runs a script.
"""

import _imp
import ast
import importlib.util
import marshal
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from interpreter import LIBRARY, Interpreter

FILE: Final = "runner.modules"
"""In `_internal/`: see boot.py."""
OURS: Final = "cronium_runner"

OPTIONS: Final = ("X utf8=1", "pyi-contents-directory _internal")
"""UTF-8 mode, whatever the login's locale: a host's ISO 8859-15 would need a codec before the first line of ours runs,
and file names, arguments and environment are bytes to us either way."""

ENCODINGS: Final = (
    "aliases", "ascii", "idna", "latin_1", "utf_8", "utf_8_sig", "utf_16", "utf_16_be", "utf_16_le", "utf_32",
    "utf_32_be", "utf_32_le",
)  # fmt: skip
"""The encodings that json and yaml recognise by their first bytes, the ones Python itself starts with, and the one that
it looks up hosts in."""
STARTING: Final = ("encodings/__init__.py", "encodings/aliases.py", "encodings/utf_8.py")

FROZEN: Final = {name for name in sys.stdlib_module_names if _imp.is_frozen(name)} | {"importlib.machinery"}
"""Modules that the library itself has, as code."""


def write_modules(folder: Path, sources: Mapping[str, str], extensions: Mapping[str, str], python: Interpreter) -> None:
    """Write the file of all modules, `sources` by name, and copy the extension modules that the library lacks.

    Names and files are those of the Python that runs this; what `python` has in their place is taken.
    """
    code = {}
    for name, path in sources.items():
        source = python.source(path)
        if source.exists() and not _imp.is_frozen(name) and is_wanted(name):
            code[name] = source.name == "__init__.py", compiled(name, source)
    index: dict[str, tuple[bool, int, int] | str] = {}
    content = b""
    for name, (is_package, module) in sorted(code.items()):
        index[name] = is_package, len(content), len(module)
        content += module
    for name in sorted(extensions):
        file = python.extension(name)
        if file is not None:
            (folder / "lib-dynload").mkdir(exist_ok=True)
            (folder / "lib-dynload" / file.name).write_bytes(file.read_bytes())
            index[name] = f"lib-dynload/{file.name}"
    head = marshal.dumps(index)
    (folder / FILE).write_bytes(len(head).to_bytes(4, "big") + head + content)


def is_wanted(name: str) -> bool:
    """Whether it is not one of the many encodings that nothing of ours uses."""
    package, _, module = name.partition(".")
    return package != "encodings" or module in ("", *ENCODINGS)


def compiled(name: str, source: Path) -> bytes:
    """The marshalled code of a module, under its name below the folder of modules."""
    path = name.replace(".", "/") + ("/__init__.py" if source.name == "__init__.py" else ".py")
    is_ours = name.partition(".")[0] == OURS
    module = ast.parse(source.read_bytes())
    if is_ours and ".cli" not in name:
        module = Executed().visit(module)
    return marshal.dumps(compile(module, path, "exec", dont_inherit=True, optimize=0 if is_ours else 2))


class Executed(ast.NodeTransformer):
    """Leaves of a module of ours what is executed: its asserts, no docstrings (a tenth of what is read), and of its
    annotations those of classes, whose fields they are. All others are evaluated when a module is imported."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A function without annotations."""
        return self._without_annotations(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """The same of an asynchronous one."""
        return self._without_annotations(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """A class with its fields as they are."""
        node.body = [entry if isinstance(entry, ast.AnnAssign) else self.visit(entry) for entry in node.body]
        return without_docstring(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        """A whole module."""
        return self.generic_visit(without_docstring(node))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """An assignment; a declaration stays, since it says whose a name is."""
        if node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def _without_annotations(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return self.generic_visit(without_docstring(node))


Documented = TypeVar("Documented", bound=ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)


def without_docstring(node: Documented) -> Documented:
    """The same node, changed. Docstrings of commands are click's help, and stay (see `compiled`)."""
    if ast.get_docstring(node, clean=False) is not None:
        node.body[:1] = [] if len(node.body) > 1 else [ast.copy_location(ast.Pass(), node.body[0])]
    return node


def write_library(folder: Path, python: Interpreter) -> None:
    """Write base_library.zip, uncompressed and with fixed times."""
    with zipfile.ZipFile(folder / "base_library.zip", "w", zipfile.ZIP_STORED) as writer:
        for path in STARTING:
            code = compile((python.standard_library / path).read_bytes(), path, "exec", dont_inherit=True, optimize=2)
            header = importlib.util.MAGIC_NUMBER + bytes(12)  # no time of a source, which is not there to be compared
            writer.writestr(zipfile.ZipInfo(f"{path}c", (1980, 1, 1, 0, 0, 0)), header + marshal.dumps(code))


def write_archive(path: Path, program: Path, work: Path) -> None:
    """Write the bootloader's archive. It does not start without an entry for modules."""
    from PyInstaller.archive.writers import CArchiveWriter  # type: ignore[import-untyped]

    empty = work / "nothing"
    empty.write_bytes(b"none")
    boot = Path(__file__).with_name("boot.py")
    scripts = [("boot", os.fspath(boot), False, "s2"), ("__main__", os.fspath(program), False, "s")]
    options = [(name, "", False, "o") for name in OPTIONS]
    entries = [*options, *scripts, ("PYZ.pyz", os.fspath(empty), False, "z")]
    CArchiveWriter(os.fspath(path), entries, pylib_name=LIBRARY)


def carried(folder: Path, python: Interpreter) -> set[str]:
    """The names of all modules that can be imported in the binary whose `_internal/` is `folder`."""
    content = (folder / FILE).read_bytes()
    index = marshal.loads(content[4 : 4 + int.from_bytes(content[:4], "big")])  # noqa: S302 - made a moment ago
    return set(index) | python.built_in() | FROZEN
