"""Compiles the programs of a binary that are in C: the launcher and the helper client.

Both are static and against musl: they run on any Linux of their architecture, and need nothing that a host may lack.
"""

import os
import subprocess
import sys
from pathlib import Path

LAUNCHER = Path(__file__).resolve().with_name("launcher")
SMALL_DECODER = (
    "ZSTD_DISABLE_ASM=1",
    "ZSTD_LEGACY_SUPPORT=0",
    "ZSTD_STRIP_ERROR_STRINGS=1",
    "HUF_FORCE_DECOMPRESS_X1",
    "ZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT",
    "ZSTD_NO_INLINE=1",
    "NDEBUG",
)
"""zstd's own names for leaving out what makes it quicker and larger."""


def client(source: Path, architecture: str, program: Path) -> Path:
    """The helper client. `source` is client.c. Raises SystemExit."""
    return compiled(architecture, program, [source])


def launcher(zstd: Path, architecture: str, program: Path) -> Path:
    """The launcher. `zstd` is the folder of zstd's source. Raises SystemExit."""
    sections = ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
    decoder = [f"-I{zstd}", *(f"-D{name}" for name in SMALL_DECODER)]
    strict = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    sources = [*sorted(LAUNCHER.glob("*.c")), zstd / "zstd.c"]
    return compiled(architecture, program, sources, *strict, *sections, *decoder)


def compiled(architecture: str, program: Path, sources: list[Path], *options: str) -> Path:
    """`program`, made of sources."""
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", "-Os", "-static", "-s"]
    command = [*compiler, *options, "-o", os.fspath(program), *map(os.fspath, sources)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{program.name} could not be compiled (status {done.returncode})")
    return program
