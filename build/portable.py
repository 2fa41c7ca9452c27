"""Makes the binary, of which nothing depends on the host's C library.

In:  the modules and the archive that modules.py has written, PyInstaller's bootloader, the launcher, the helper files.
Out: the installed form, with a dynamic linker and a C library of its own; and the carrier, the one file that is copied
     to hosts: launcher, list of contents (see cronium_runner.bundle) and one zstd stream of all files.
"""

import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import zstandard
from interpreter import LIBRARY, Interpreter, output

MARK: Final = b"cronium-runner carries:\0"
"""In the launcher, in front of the numbers of `struct carried` (launcher.h)."""
NUMBERS: Final = struct.Struct("<4Q")

LINKERS: Final = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}

UNNAMED: Final = (
    "libgcc_s.so.1",  # the C library loads it to end threads, and aborts without it
    "libdl.so.2",  # these are empty today, and named by the host's older NSS modules
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
)
"""Libraries that are loaded although no file of the form needs them by name."""

PRELOAD: Final = b"/etc/ld.so.preload\0", b"/dev/null/-preload\0"
"""The file that has the linker load a host's libraries into every process, and a name of which there can be no file."""

LEVEL: Final = 19


def assemble(form: Path, launcher: Path, bootloader: Path, helpers: Mapping[str, Path], python: Interpreter) -> None:
    """Complete `form`, a folder with `_internal/` and the bootloader's archive beside it, to the installed form.

    `helpers` are files by their paths in the form. Raises SystemExit.
    """
    libraries = form / "_internal"
    archive = form / "cronium-runner.pkg"
    executable = form / "cronium-runner"
    executable.write_bytes(launcher.read_bytes() + archive.read_bytes())
    executable.chmod(0o755)
    archive.unlink()
    shutil.copyfile(bootloader, libraries / "boot")
    (libraries / "boot").chmod(0o755)
    add_libraries(libraries, LINKERS[python.architecture], python)
    if not python.is_stripped:
        for file in sorted(path for path in libraries.rglob("*") if is_elf(path)):
            subprocess.run(["strip", str(file)], check=True)
    for path, source in helpers.items():
        destination = form / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, destination)


def add_libraries(libraries: Path, linker: str, python: Interpreter) -> None:
    """Add the dynamic linker and every library that something in `libraries` needs, until nothing is missing."""
    content = python.library(linker).read_bytes()
    if content.count(PRELOAD[0]) != 1:
        raise SystemExit(f"{linker} names {PRELOAD[0]!r} {content.count(PRELOAD[0])} times, not once: look at it anew")
    (libraries / linker).write_bytes(content.replace(*PRELOAD))
    (libraries / linker).chmod(0o755)
    missing = {LIBRARY, *UNNAMED}
    while missing:
        for name in missing:
            shutil.copyfile(python.library(name), libraries / name)
        there = {path.name for path in libraries.iterdir()}
        missing = {name for path in libraries.rglob("*") if is_elf(path) for name in needed(path)} - there


def is_elf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def needed(path: Path) -> set[str]:
    """The libraries that an ELF file names, the linker among them."""
    fields = (line.split() for line in output(["objdump", "-p", str(path)]).splitlines())
    return {words[1] for words in fields if len(words) == 2 and words[0] == "NEEDED"}


def carry(form: Path, links: Mapping[str, str], identity: str, launcher: Path, carrier: Path, magic: str) -> None:
    """Write the carrier of the installed form `form`. `links` are targets by path; `identity` is version, commit and
    build time, separated by spaces."""
    files = sorted(str(path.relative_to(form)) for path in form.rglob("*") if path.is_file())
    listed = contents(form, files, links, identity, magic).encode("ascii")
    content = b"".join((form / path).read_bytes() for path in files)
    packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(listed + content)
    program = launcher.read_bytes()
    at = program.find(MARK) + len(MARK)
    if program.count(MARK) != 1 or any(program[at : at + NUMBERS.size]):
        raise SystemExit("the launcher has no place for what the carrier carries")
    list_at = len(program)
    numbers = NUMBERS.pack(list_at, len(listed), list_at + len(listed), len(packed))
    carrier.write_bytes(program[:at] + numbers + program[at + NUMBERS.size :] + listed + packed)
    carrier.chmod(0o755)


def contents(form: Path, files: Iterable[str], links: Mapping[str, str], identity: str, magic: str) -> str:
    """The list of contents (see cronium_runner.bundle). The build id is a digest of all that is in it."""
    version, commit, built_at = identity.split(" ")
    lines = [f"l {goal} {path}" for path, goal in sorted(links.items())]
    digest = hashlib.sha256(f"{version} {commit} {built_at}\n".encode() + "\n".join(lines).encode())
    digests = []
    for path in files:
        if " " in path:
            raise SystemExit(f"{path} has a space in its name, which the list of contents has no room for")
        content = (form / path).read_bytes()
        mode = 0o700 if os.access(form / path, os.X_OK) else 0o600
        lines.append(f"f {mode:04o} {len(content)} {path}")
        digests.append(f"s {hashlib.sha256(content).hexdigest()} {path}")
        digest.update(f"{lines[-1]}\0{digests[-1]}".encode())
    identity = f"{version} {digest.hexdigest()[:12]} {commit} {built_at}"
    return "\n".join([magic, identity, *lines, *digests]) + "\n"
