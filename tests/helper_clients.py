"""What tests of the helper clients share: the clients themselves, and a small supervisor that speaks PROTOCOL.md."""

import glob
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pytest

from cronium_runner.helpers import HELPER_NAMES, HelperError, execute, parse
from cronium_runner.values import BundledValues

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "helpers" / "cronium_helpers"
PYTHONS = ("python3.6", "python3.7", "python3.8", "python3.9", "python3.10", "python3.11", "python3.12", "python3.13")


Run = Callable[..., dict[str, Any]]


class Client(NamedTuple):
    """A way to call helpers from a script: `extension` says in which language."""

    name: str
    extension: str
    environment: dict[str, str]


def compiled_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """client.c as scripts/build has made it for this machine, or else built here, once a session."""
    if "CRONIUM_HELPER_CLIENT" in os.environ:
        return Path(os.environ["CRONIUM_HELPER_CLIENT"])
    built = tmp_path_factory.getbasetemp() / "helper-client"
    if not built.exists():
        compile_client("-Os", "-static", "-s", "-o", str(built))
    return built


def compile_client(*options: str) -> None:
    """client.c, without a warning. Skips where the Zig toolchain is not installed."""
    pytest.importorskip("ziglang", reason="the compiled helper client needs ziglang (pip install ziglang)")
    target = f"{os.uname().machine}-linux-musl"
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target, *warnings]
    subprocess.run([*compiler, *options, str(HELPERS / "client.c")], check=True)


def fallback_client(folder: Path) -> Path:
    """A program that is cronium_runner.client under whatever name it is called, as the runner binary is."""
    program = folder / "fallback-client"
    runner = ROOT / "runner" / "cronium_runner"
    program.write_text(
        f"#!{sys.executable} -ISB\nimport sys\nsys.path.insert(0, {str(runner)!r})\n"
        "import client\nsys.exit(client.main(sys.argv))\n"
    )
    program.chmod(0o755)
    return program


def helper_folder(folder: Path, client: Path | None = None) -> Path:
    """A helper folder as the runner makes it: a link for every name, and the libraries."""
    folder.mkdir()
    for name in HELPER_NAMES if client else ():
        (folder / name).symlink_to(str(client))
    for library in ("cronium.py", "cronium.js", "sitecustomize.py"):
        shutil.copy(HELPERS / library, folder)
    return folder


def interpreters() -> Iterator[str]:
    """This interpreter, and every other Python 3.6 and later that PATH has and that really starts."""
    yield sys.executable
    for name in PYTHONS:
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            yield found
    # Where pyenv is used, PATH has its shims only, and those start no more than the version that is switched on.
    yield from sorted(glob.glob(os.path.expandvars("$PYENV_ROOT/versions/3.*/bin/python3")))


def record(kind: bytes, content: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(content)) + content


class Call:
    """One connection as the supervisor sees it: `words` are read, the rest is up to the test."""

    def __init__(self, connection: socket.socket, stream: BinaryIO) -> None:
        self._connection = connection
        self._stream = stream
        assert self._read(4) == b"CRH1"
        self.words = [self._read(self._length()) for _ in range(self._length())]

    def send(self, *records: bytes) -> None:
        self._connection.sendall(b"".join(records))

    def stdin_chunks(self) -> list[bytes]:
        """Ask for standard input and return its chunks. Raises EOFError when the client leaves before the end."""
        self.send(record(b"I"))
        chunks = []
        while length := self._length():
            chunks.append(self._read(length))
        return chunks

    def _length(self) -> int:
        return int(struct.unpack(">I", self._read(4))[0])

    def _read(self, size: int) -> bytes:
        content = self._stream.read(size)
        if len(content) < size:
            raise EOFError
        return content


@contextmanager
def supervisor(folder: Path, answer: Callable[[Call], None]) -> Iterator[str]:
    """Serve helper calls with `answer`, one at a time; yields the socket's path. A failed `answer` fails the test."""
    path = str(folder / "s")
    failures: list[BaseException] = []

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                if not stream.peek(1):
                    return  # the test is over
                try:
                    answer(Call(connection, stream))
                except (BrokenPipeError, ConnectionResetError):
                    pass
                except BaseException as error:
                    failures.append(error)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(path)
            thread.join()
            os.unlink(path)
    if failures:
        raise failures[0]


def with_grammar(values: BundledValues) -> Callable[[Call], None]:
    """Answer calls as a real supervisor does, from `values`."""

    def answer(call: Call) -> None:
        try:
            request = parse(call.words)
            given = execute(request, values, b"".join(call.stdin_chunks()) if request.needs_stdin else None)
        except HelperError as error:
            given = error.answer
        end = record(b"X", bytes([given.status]) + given.code.encode())
        call.send(record(b"O", given.stdout), record(b"E", given.stderr), end)

    return answer
