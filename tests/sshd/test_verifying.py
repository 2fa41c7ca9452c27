"""`cronium deploy --verify`: the installed forms of the real binary, untouched and tampered with."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cronium_controller.deploy.verification import State
from remote_host import RemoteHost

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


def largest_library(form: Path) -> Path:
    return max(
        (path for path in (form / "_internal").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def change_a_byte(form: Path) -> str:
    """Its size and times as before."""
    library = largest_library(form)
    before, content = library.stat(), library.read_bytes()
    library.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))
    return str(library.relative_to(form))


def add_a_module(form: Path) -> str:
    (form / "_internal/sitecustomize.py").write_text("import os\n")
    return "_internal/sitecustomize.py"


def add_bytecode(form: Path) -> str:
    """Only what scripts compile of the helpers may lie in such a folder."""
    (form / "_internal/__pycache__").mkdir()
    (form / "_internal/__pycache__/os.cpython-311.pyc").write_bytes(b"x")
    return "_internal/__pycache__"


def remove_a_file(form: Path) -> str:
    (form / "helpers/client").unlink()
    return "helpers/client"


def redirect_a_link(form: Path) -> str:
    link = next(path for path in sorted((form / "helpers/bin").iterdir()) if path.is_symlink())
    link.unlink()
    link.symlink_to("/bin/true")
    return str(link.relative_to(form))


def open_a_file(form: Path) -> str:
    (form / "cronium-runner").chmod(0o722)
    return "cronium-runner"


def rewrite_the_list(form: Path) -> str:
    """The list on the host says what its owner likes."""
    listed = form / "contents"
    library = str(largest_library(form).relative_to(form))
    listed.write_text("".join(line for line in listed.read_text().splitlines(keepends=True) if library not in line))
    return "contents"


def add_an_odd_name(form: Path) -> str:
    digest = "0" * 64
    (form / f"_internal/x\n{digest}  y").touch()
    return "_internal/"


TAMPERINGS: list[Callable[[Path], str]] = [
    change_a_byte, add_a_module, add_bytecode, remove_a_file, redirect_a_link, open_a_file, rewrite_the_list,
    add_an_odd_name,
]  # fmt: skip


async def test_every_tampering_is_named_and_nothing_foreign_executed(fresh: RemoteHost, tmp_path: Path) -> None:
    async with fresh.controller() as controller:
        assert (await controller.verify(fresh.host)).agrees, "there is none"
        form = Path((await controller.deploy(fresh.host)).path).parent
        (form / "helpers/python/__pycache__").mkdir()
        (form / "helpers/python/__pycache__/cronium.cpython-311.pyc").write_bytes(b"by a script's own Python")
        found = await controller.verify(fresh.host)
        assert found.agrees
        assert [(told.path, told.skipped) for told in found.forms] == [
            (str(form), ["helpers/python/__pycache__/cronium.cpython-311.pyc"])
        ]
        paths = [tamper(form) for tamper in TAMPERINGS]
        found = await controller.verify(fresh.host)
        assert [told.state for told in found.forms] == [State.DIFFERS]
        differences = [one.path for told in found.forms for one in told.differences]
        assert [path for path in paths if not any(one.startswith(path) for one in differences)] == []
        shutil.move(form, tmp_path / "elsewhere")
        form.symlink_to(tmp_path / "elsewhere")
        found = await controller.verify(fresh.host)
        assert [one.what for told in found.forms for one in told.differences] == ["it cannot be read: it is a link"]
        form.unlink()
    where = ("--host", fresh.server.target)
    foreign = fresh.root / "6.6.6-0123456789ab"
    foreign.mkdir()
    (foreign / "cronium-runner").write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    (foreign / "cronium-runner").chmod(0o700)
    (fresh.root / "else\x1b[2J").touch()
    done = fresh.cronium("deploy", *where, "--verify")
    assert done.returncode == 1
    complaints = done.stderr.decode()
    assert f"{fresh.server.target}: {foreign}: unknown build" in complaints
    assert "else\\x1b[2J: no installed runner" in complaints
    assert not (tmp_path / "executed").exists()
    foreign.joinpath("cronium-runner").unlink()
    foreign.rmdir()
    (fresh.root / "else\x1b[2J").unlink()
