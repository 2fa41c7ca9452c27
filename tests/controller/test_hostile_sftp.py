"""Copies from and to a host that lies: each behaviour ends in a clear error or the right file, and nothing else."""

import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

import hostile_sftp
from cronium_controller import copying, remote_file, sftp, transfer
from cronium_controller.dispatch import Controller
from cronium_controller.errors import ControllerError
from cronium_controller.memory import account
from cronium_controller.partial_copies import HERE, PartialCopies, key_of
from cronium_controller.remote_file import Partial
from openssh import sshd_path
from remote_host import RemoteHost, resident_memory_growth

pytestmark = pytest.mark.sshd
SIZE: Final = 3_000_000
MOST_MEMORY: Final = 64 * 1024 * 1024
NOT_SFTP: Final = "the server's answer is not SFTP"
SILENT: Final = "it has not answered for"
RIGHT: Final = None
"""The file is right, and called what was typed."""

GET: Final = {
    "honest": RIGHT,
    "another name": RIGHT,
    "name with dots": RIGHT,
    "name with NUL": NOT_SFTP,
    "name with escapes": RIGHT,
    "relative name": NOT_SFTP,
    "two names": NOT_SFTP,
    "very many names": NOT_SFTP,
    "no names": NOT_SFTP,
    "name that is no text": NOT_SFTP,
    "set-id mode": RIGHT,
    "size too small": RIGHT,
    "size much too large": RIGHT,
    "size too large": "are needed, and .* are free; make room",
    "type of a folder": "it is a folder",
    "type of a device": "it is not a regular file",
    "endless file": "came after the 10 bytes that the host said",
    "short reads": RIGHT,
    "more than asked": NOT_SFTP,
    "hole in the middle": "a part in its middle did not come",
    "other bytes": "is not what arrived of it",
    "wrong digest": "is not what arrived of it",
    "packet too large": NOT_SFTP,
    "packet cut short": NOT_SFTP,
    "never answers": SILENT,
    "never answers a read": SILENT,
    "answers in odd order": RIGHT,
    "unknown request": NOT_SFTP,
    "handle used twice": RIGHT,
    "error with escapes": "cannot copy ~/file: ",
    "shell without end": "no shell answers to commands: it prints without end",
    "shell file without end": "came after the 3.0 MB that the host said",
    "shell errors without end": SILENT,
    "shell with another name": RIGHT,
    "shell name with escapes": RIGHT,
    "shell never answers": SILENT,
}
PUT: Final = {
    "honest": RIGHT,
    "another name": "cannot copy",
    "name with NUL": NOT_SFTP,
    "no names": NOT_SFTP,
    "size too small": RIGHT,
    "type of a folder": RIGHT,
    "wrong digest": "is not what .* was; nothing was replaced",
    "never answers": SILENT,
    "never answers a write": SILENT,
    "drops what is written": "is not what .* was; nothing was replaced",
    "full disk": "No space left on device",
    "mkdir makes a link": "the host makes no folder that this account alone can write to",
    "mkdir makes it open": "the host makes no folder that this account alone can write to",
    "endless listing": RIGHT,
    "shell without end": "no shell answers to commands: it prints without end",
    "shell errors without end": SILENT,
    "shell never answers": SILENT,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, carrier: Path) -> Iterator[RemoteHost]:
    """A hostile host."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    folder = tmp_path_factory.mktemp("hostile")
    with RemoteHost(folder / "remote", carrier, folder / "lib", options=hostile_sftp.options(folder)) as made:
        yield made


@pytest.fixture
def remote(server: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteHost:
    """It, with nothing but `~/file`, and nothing remembered."""
    for folder in (server.home, server.remembered):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    (server.folder / ".bashrc").unlink(missing_ok=True)
    (server.home / "file").write_bytes(os.urandom(SIZE))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(remote_file, "MOST_GROWTH", 2 * SIZE)
    return server


@pytest.fixture
async def controller(remote: RemoteHost) -> AsyncIterator[Controller]:
    async with remote.controller() as made:
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of the operator's, with a destination in it."""
    made = tmp_path / "here"
    (made / "destination").mkdir(parents=True)
    (made / "precious").write_text("mine")
    return made


def behave(remote: RemoteHost, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile_sftp.behave(remote.folder.parent, behaviour)
    if "never answers" in behaviour or "errors without end" in behaviour:
        monkeypatch.setattr(sftp, "ANSWER_SECONDS", 1.0)


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def found_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check(error: ControllerError) -> None:
    """An error is one line that moves no cursor, with a code that says what it is."""
    assert error.code in ("files.refused", "files.mismatch", "host.unreachable"), error
    assert error.message.isprintable(), error.message


def test_every_behaviour_is_tried() -> None:
    assert set(GET) | set(PUT) == set(hostile_sftp.BEHAVIOURS)


@pytest.mark.parametrize("behaviour", GET)
async def test_what_a_hostile_host_answers_to_get(
    behaviour: str, controller: Controller, remote: RemoteHost, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(remote, behaviour, monkeypatch)
    refused: ControllerError | None = None
    with resident_memory_growth() as grown:
        try:
            copied = await transfer.get(
                controller.connections, controller.store, remote.host, "~/file", f"{here}/destination/", lambda _: None
            )
        except ControllerError as error:
            refused = error
    assert grown[0] < MOST_MEMORY
    assert (here / "precious").read_text() == "mine"
    outside = {"precious", "destination"}
    expected = GET[behaviour]
    if expected is not None:
        assert refused is not None
        check(refused)
        with pytest.raises(ControllerError, match=expected):
            raise refused
        left = {name for name in found_in(here) - outside if not name.startswith("destination/.file.")}
        assert left == set(), "nothing but what the next attempt goes on with"
        return
    assert refused is None, refused
    assert found_in(here) == {*outside, "destination/file"}
    assert copied.path == f"{here}/destination/file"
    assert (here / "destination/file").read_bytes() == (remote.home / "file").read_bytes()
    assert stat.S_IMODE((here / "destination/file").stat().st_mode) & (0o7000 | umask()) == 0


@pytest.mark.parametrize("behaviour", PUT)
async def test_what_a_hostile_host_answers_to_put(
    behaviour: str, controller: Controller, remote: RemoteHost, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(remote, behaviour, monkeypatch)
    with transfer.Source(str(here / "precious")) as source:
        if behaviour == "endless listing":
            remembered(controller, remote, source)
        refused: ControllerError | None = None
        with resident_memory_growth() as grown:
            try:
                await transfer.put(
                    controller.connections, controller.store, remote.host, source, "~/there", lambda _: None
                )
            except ControllerError as error:
                refused = error
    assert grown[0] < MOST_MEMORY
    assert found_in(here) == {"precious", "destination"}
    expected = PUT[behaviour]
    if expected is not None:
        assert refused is not None
        check(refused)
        with pytest.raises(ControllerError, match=expected):
            raise refused
        assert not (remote.home / "there").exists()
        left = found_in(remote.home) - {"file", ".bashrc", "elsewhere"}
        assert not [name for name in left if not name.startswith(".there.")], "nothing was written elsewhere"
        assert behaviour != "mkdir makes it open" or not left
        return
    assert refused is None, refused
    assert (remote.home / "there").read_text() == "mine"


async def test_a_copy_that_was_given_up_is_gone_on_with(
    controller: Controller, remote: RemoteHost, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as silent, transfer.Source(str(here / "precious")) as source:
        behave(remote, "never answers a write", silent)
        with pytest.raises(ControllerError, match=SILENT):
            await transfer.put(controller.connections, controller.store, remote.host, source, "~/there", lambda _: None)
    [folder] = remote.home.glob(".there.*.part")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    hostile_sftp.behave(remote.folder.parent, "honest")
    with transfer.Source(str(here / "precious")) as source:
        await transfer.put(controller.connections, controller.store, remote.host, source, "~/there", lambda _: None)
    assert found_in(remote.home) == {"file", "there"}
    assert controller.store.database.read("SELECT * FROM partial_copies") == []


def remembered(controller: Controller, remote: RemoteHost, source: transfer.Source) -> None:
    """A copy that was cut off, as the store knows it and the host has it."""
    target, folder = f"{remote.home}/there", remote.home / ".there.0123.part"
    folder.mkdir(mode=0o700)
    (folder / "part").write_bytes(b"m")
    where = account(remote.host)
    with PartialCopies(
        controller.store.database, where, target, key_of("put", where, target, source.sha256)
    ) as partials:
        partials.begin(str(folder))
        partials.note_owner(Partial(str(folder), os.getuid()))


@pytest.mark.parametrize("behaviour", ["another name", "shell with another name"])
async def test_a_hosts_folder_and_a_resumed_copy_have_the_typed_name(
    behaviour: str, controller: Controller, remote: RemoteHost, here: Path
) -> None:
    hostile_sftp.behave(remote.folder.parent, behaviour)
    file, target = remote.home / "file", here / "destination/web01/file"
    (here / "destination/web01/.begun.part").mkdir(mode=0o700, parents=True)
    (here / "destination/web01/.begun.part/part").write_bytes(file.read_bytes()[:1_000_000])
    told, where = remote.home / ".bashrc", account(remote.host)
    key = key_of("get", where, told, SIZE, int(file.stat().st_mtime), target)
    with PartialCopies(controller.store.database, HERE, str(target), key) as partials:
        partials.begin(f"{here}/destination/web01/.begun.part")
    copied = await transfer.get(
        controller.connections,
        controller.store,
        remote.host,
        "~/file",
        f"{here}/destination",
        lambda _: None,
        below="web01",
    )
    assert (copied.path, copied.sent) == (str(target), SIZE - 1_000_000)
    assert found_in(here) == {"precious", "destination", "destination/web01", "destination/web01/file"}
    assert target.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("behaviour", ["another name", "set-id mode", "shell with another name"])
async def test_a_small_copy_has_the_typed_name(
    behaviour: str, controller: Controller, remote: RemoteHost, here: Path
) -> None:
    hostile_sftp.behave(remote.folder.parent, behaviour)
    async with controller.connections.lease(remote.host) as lease:
        await copying.download(lease.connection, "~/file", f"{here}/destination")
    assert found_in(here) == {"precious", "destination", "destination/file"}
    assert (here / "destination/file").read_bytes() == (remote.home / "file").read_bytes()
    assert stat.S_IMODE((here / "destination/file").stat().st_mode) & (0o7000 | umask()) == 0


def test_nothing_of_a_host_moves_the_cursor(remote: RemoteHost, here: Path) -> None:
    hostile_sftp.behave(remote.folder.parent, "error with escapes")
    done = remote.cronium("get", "--host", remote.server.target, "~/file", here / "destination")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr[:-1].decode().isprintable(), done.stderr
    assert rb"\x1b]52" in done.stderr
