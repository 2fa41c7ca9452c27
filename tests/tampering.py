"""What others may do to the folder of a partial copy; after each it must not be gone on with."""

import os
from collections.abc import Callable
from pathlib import Path


def change_mode(folder: Path) -> None:
    folder.chmod(0o755)


def add_link(folder: Path) -> None:
    os.link(folder / "part", folder.parent / "another name")


def exchange_file(folder: Path) -> None:
    (folder / "part").unlink()
    (folder / "part").symlink_to("/etc/hostname")


def exchange_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(folder.with_name("moved"))


def exchange_for_fifo(folder: Path) -> None:
    (folder / "part").unlink()
    os.mkfifo(folder / "part")


def add_file(folder: Path) -> None:
    (folder / "other").touch()


def remove(folder: Path) -> None:
    (folder / "part").unlink()
    folder.rmdir()


CHANGES: list[Callable[[Path], None]] = [
    change_mode,
    add_link,
    exchange_file,
    exchange_folder,
    exchange_for_fifo,
    add_file,
    remove,
]
