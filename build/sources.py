"""Fetches what the build takes from PyPI beside the installed packages, each believed by its SHA-256.

zstd's source comes from the source distribution of `zstandard`, bootloaders of other architectures from PyInstaller's
wheels. Files are kept in `.work/sources`, so that a later build needs no network.
"""

import hashlib
import platform
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

from archive import UnavailableError

ROOT = Path(__file__).resolve().parent.parent
KEPT: Final = ROOT / ".work" / "sources"
ZSTD_FILES: Final = ("zstd.c", "zstd.h", "zstd_errors.h", "LICENSE")
SHA256: Final = {
    "zstandard-0.25.0.tar.gz": "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b",
    "pyinstaller-6.22.3-py3-none-manylinux2014_aarch64.whl": (
        "312da84b4b31ab9750066a823734c11b7c68757fdd67c9f038bf19c330a954e4"
    ),
    "pyinstaller-6.22.3-py3-none-manylinux2014_x86_64.whl": (
        "451a4ae14b719365bf1a2f0a99dae7b3463060061c3a394c70d5264cfb439528"
    ),
}
"""In the versions that pyproject.toml asks for."""
BOOTLOADERS: Final = {"x86_64": "Linux-64bit-intel", "aarch64": "Linux-64bit-arm"}
"""PyInstaller's names of them."""


def zstd(folder: Path) -> Path:
    """The folder, below `folder`, of zstd's source in one file. Raises UnavailableError."""
    archive = fetched(f"zstandard-{installed_version('zstandard')}.tar.gz", "--no-binary", "zstandard", "zstandard")
    target = folder / archive.name.removesuffix(".tar.gz") / "zstd"
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as members:
        for name in ZSTD_FILES:
            content = members.extractfile(f"{target.parent.name}/zstd/{name}")
            if content is None:
                raise UnavailableError(f"{archive} has no file zstd/{name}")
            (target / name).write_bytes(content.read())
    return target


def bootloader(architecture: str, folder: Path) -> Path:
    """PyInstaller's bootloader, in `folder` where it is not that of this machine. Raises UnavailableError."""
    import PyInstaller  # type: ignore[import-untyped]

    place = f"PyInstaller/bootloader/{BOOTLOADERS[architecture]}/run"
    if architecture == platform.machine():
        return Path(PyInstaller.__path__[0]).parent / place
    kind = f"manylinux2014_{architecture}"
    wheel = f"pyinstaller-{installed_version('pyinstaller')}-py3-none-{kind}.whl"
    path = folder / f"bootloader-{architecture}"
    with zipfile.ZipFile(fetched(wheel, "--only-binary", ":all:", "--platform", kind, "pyinstaller")) as members:
        path.write_bytes(members.read(place))
    return path


def fetched(file: str, *words: str) -> Path:
    """The file of a distribution, whose name is the last of pip's words. Raises UnavailableError."""
    path = KEPT / file
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
        *options, name = words
        wanted = [*options, "--dest", str(KEPT), f"{name}=={installed_version(name)}"]
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.exists():
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise UnavailableError(f"pip could not fetch {file}: {said[-1]}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256.get(file):
        raise UnavailableError(f"{path} has the SHA-256 {digest}, not {SHA256.get(file)}: remove it, and build again")
    return path
