"""Partial copies on a host that others can write to: planted links, exchanged folders, what is left behind."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from accounts import Account, throw_away_account
from cronium_controller import transfer
from cronium_controller.dispatch import Controller
from cronium_controller.errors import ControllerError
from cronium_controller.far_files import way_to
from cronium_controller.memory import account
from cronium_controller.partial_copies import HERE, KEPT_SECONDS, PartialCopies, key_of
from cronium_controller.remote_file import Partial
from cronium_controller.store import Store
from cronium_controller.transfer import Source
from openssh import sshd_path
from remote_host import RemoteHost
from tampering import CHANGES

WORDS: Final = b"words that are copied"


@pytest.fixture(scope="module", params=["sftp", "shell"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, carrier: Path
) -> Iterator[RemoteHost]:
    """A host with SFTP, and one without."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    folder = tmp_path_factory.mktemp("remote")
    sftp = f"sftp internal-sftp -d {folder}/home" if request.param == "sftp" else "nothing internal-sftp"
    with RemoteHost(folder, carrier, folder / "lib", options=[f"Subsystem {sftp}"]) as made:
        yield made


@pytest.fixture
def remote(server: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteHost:
    """It, with nothing in its home directory, and nothing remembered."""
    for folder in (server.home, server.remembered):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return server


@pytest.fixture
async def controller(remote: RemoteHost) -> AsyncIterator[Controller]:
    async with remote.controller() as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(WORDS)
    return path


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("mine")
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody can write to, as /tmp."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture
def neighbour(as_root: None) -> Iterator[Account]:
    with throw_away_account() as made:
        yield made


async def put(controller: Controller, remote: RemoteHost, path: Path, target: object) -> transfer.Copied:
    with Source(str(path)) as source:
        return await transfer.put(
            controller.connections, controller.store, remote.host, source, str(target), lambda _: None
        )


async def get(
    controller: Controller, remote: RemoteHost, source: str, target: object, below: str | None = None
) -> transfer.Copied:
    return await transfer.get(
        controller.connections, controller.store, remote.host, source, str(target), lambda _: None, below=below
    )


# -- what others have put there ---------------------------------------------------------------------------------------


async def test_put_follows_no_link_at_a_name_that_can_be_guessed(
    remote: RemoteHost, controller: Controller, source: Path, precious: Path, shared: Path
) -> None:
    guessed = shared / f".x.{hashlib.sha256(WORDS).hexdigest()[:16]}.part"  # the name that 0.1.0 gave it
    guessed.symlink_to(precious)
    await put(controller, remote, source, shared / "x")
    assert precious.read_text() == "mine"
    assert (shared / "x").read_bytes() == WORDS
    assert sorted(os.listdir(shared)) == [guessed.name, "x"]


def guessed_by_get(remote: RemoteHost, source: Path, folder: Path) -> Path:
    """The partial file of 0.1.0 of a copy of `source` to `x` in a folder here."""
    found = source.stat()
    words = f"{account(remote.host)}\n{source}\n{found.st_size}\n{int(found.st_mtime)}"
    return folder / f".x.{hashlib.sha256(words.encode()).hexdigest()[:16]}.part"


async def test_get_takes_no_file_at_a_name_that_can_be_guessed(
    remote: RemoteHost, controller: Controller, source: Path, precious: Path, shared: Path
) -> None:
    guessed = guessed_by_get(remote, source, shared)
    os.link(precious, guessed)
    await get(controller, remote, str(source), shared / "x")
    assert precious.read_text() == "mine"
    assert (shared / "x").read_bytes() == WORDS
    assert not (shared / "x").samefile(precious)
    assert guessed.samefile(precious)


async def test_put_follows_no_link_of_another_account_at_the_target(
    remote: RemoteHost, controller: Controller, source: Path, precious: Path, shared: Path, neighbour: Account
) -> None:
    for path, leads_to in ((shared / "file", precious), (shared / "new", shared.parent / "new")):
        path.symlink_to(leads_to)
        os.chown(path, neighbour.uid, neighbour.gid, follow_symlinks=False)
        with pytest.raises(ControllerError, match=r"link in a folder that others can|Permission denied") as no:
            await put(controller, remote, source, path)
        assert no.value.code == "files.refused"
    assert precious.read_text() == "mine"
    assert not (shared.parent / "new").exists()


async def test_put_follows_the_accounts_own_links_elsewhere(
    remote: RemoteHost, controller: Controller, source: Path
) -> None:
    (remote.home / "real").write_bytes(b"older")
    (remote.home / "link").symlink_to("real")
    await put(controller, remote, source, "~/link")
    assert (remote.home / "link").is_symlink()
    assert (remote.home / "real").read_bytes() == WORDS


async def test_get_as_root_leaves_nothing_that_another_account_owns(
    remote: RemoteHost, controller: Controller, source: Path, shared: Path, neighbour: Account
) -> None:
    neighbour.give(shared / "x", "theirs", 0o666)
    neighbour.give(guessed_by_get(remote, source, shared), "theirs", 0o666)
    await get(controller, remote, str(source), shared / "x")
    placed = (shared / "x").lstat()
    assert (placed.st_uid, placed.st_nlink) == (0, 1)
    assert (shared / "x").read_bytes() == WORDS
    assert (shared / guessed_by_get(remote, source, shared)).read_text() == "theirs"


async def test_get_into_a_hosts_folder_that_is_a_link_is_refused(
    remote: RemoteHost, controller: Controller, source: Path, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (shared / "web01").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControllerError, match="it is not a folder; remove it"):
        await get(controller, remote, str(source), shared, "web01")
    assert os.listdir(tmp_path / "elsewhere") == []
    assert Path((await get(controller, remote, str(source), shared, "web02")).path) == shared / "web02/source"


@pytest.mark.parametrize("name", ["/", "~", "..", "/etc/..", "~/.", ""])
async def test_what_names_no_file_is_refused_before_anything_is_sent(
    name: str, controller: Controller, remote: RemoteHost, tmp_path: Path
) -> None:
    with pytest.raises(ControllerError, match="names no file"):
        await get(controller, remote, name, f"{tmp_path}/")
    assert controller.connections.opened == 0


# -- what was begun ---------------------------------------------------------------------------------------------------


def begun(controller: Controller, remote: RemoteHost, folder: Path, sha256: str) -> Partial:
    """A copy to ~/x that was cut off, as the store knows it and the host has it."""
    folder.mkdir(mode=0o700)
    (folder / "part").write_bytes(WORDS[:5])
    target, where = f"{remote.home}/x", account(remote.host)
    key = key_of("put", where, target, sha256)
    with PartialCopies(controller.store.database, where, target, key) as partials:
        partials.begin(str(folder))
        partials.note_owner(Partial(str(folder), os.getuid()))
    return Partial(str(folder), os.getuid())


async def test_a_partial_copy_on_a_host_is_used_while_it_is_ours(
    remote: RemoteHost, controller: Controller, source: Path
) -> None:
    partial = begun(controller, remote, remote.home / ".x.0.part", hashlib.sha256(WORDS).hexdigest())
    async with controller.connections.lease(remote.host) as lease:
        far = await way_to(lease.connection)
        with closing(far):
            size = await far.usable(partial)
            assert size == (5 if far.name == "shell" else 0)
            assert await far.usable(partial._replace(folder=f"{remote.home}/no such folder")) is None
            if far.name == "sftp":
                assert await far.usable(partial._replace(uid=os.getuid() + 1)) is None
    await put(controller, remote, source, "~/x")
    assert (remote.home / "x").read_bytes() == WORDS
    assert os.listdir(remote.home) == ["x"]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_partial_copy_on_a_host_that_was_changed_is_not_used(
    change: Callable[[Path], None], remote: RemoteHost, controller: Controller, source: Path
) -> None:
    partial = begun(controller, remote, remote.home / ".x.0.part", hashlib.sha256(WORDS).hexdigest())
    change(Path(partial.folder))
    kept = {path: path.read_bytes() for path in remote.home.rglob("*") if path.is_file()}
    async with controller.connections.lease(remote.host) as lease:
        far = await way_to(lease.connection)
        with closing(far):
            assert await far.usable(partial) is None
    copied = await put(controller, remote, source, "~/x")
    assert copied.sent == len(WORDS)
    assert (remote.home / "x").read_bytes() == WORDS
    assert all(path.read_bytes() == content for path, content in kept.items() if path.exists())


async def test_what_was_left_behind_is_removed_by_a_later_copy(
    remote: RemoteHost, controller: Controller, source: Path
) -> None:
    begun(controller, remote, remote.home / ".x.1.part", "1" * 64)  # of another content
    begun(controller, remote, remote.home / ".x.2.part", "2" * 64)
    begun(controller, remote, remote.home / ".other.3.part", "3" * 64)
    database = controller.store.database
    database.write("UPDATE partial_copies SET target = 'other' WHERE folder LIKE '%other%'")
    await put(controller, remote, source, "~/x")
    assert sorted(os.listdir(remote.home)) == [".other.3.part", "x"]
    database.write("UPDATE partial_copies SET used_at = used_at - :week", {"week": KEPT_SECONDS + 60})
    await put(controller, remote, source, "~/y")
    assert sorted(os.listdir(remote.home)) == ["x", "y"]
    assert database.read("SELECT * FROM partial_copies") == []


async def test_what_was_left_behind_here_is_removed_by_a_later_copy(
    remote: RemoteHost, controller: Controller, source: Path, tmp_path: Path
) -> None:
    left = tmp_path / "here/.source.1.part"
    left.mkdir(mode=0o700, parents=True)
    (left / "part").touch()
    with PartialCopies(controller.store.database, HERE, f"{tmp_path}/here/source", "1" * 64) as partials:
        partials.begin(str(left))
    await get(controller, remote, str(source), f"{tmp_path}/here/")
    assert os.listdir(tmp_path / "here") == ["source"]
    assert controller.store.database.read("SELECT * FROM partial_copies") == []


# -- the store --------------------------------------------------------------------------------------------------------


def test_a_copy_that_is_under_way_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "controller.db")
    with PartialCopies(store.database, "web01", "/x", "1" * 64) as first:
        first.begin("/.x.1.part")
        with PartialCopies(store.database, "web01", "/x", "1" * 64) as second:
            assert second.resumable() is None
        with PartialCopies(store.database, "web01", "/x", "2" * 64) as third:
            assert third.abandoned() == []
    with PartialCopies(store.database, "web01", "/x", "1" * 64) as later:
        assert later.resumable() == Partial("/.x.1.part", None)
        assert later.resumable() is None, "it is ours now"
        later.forget("/.x.1.part")
    assert store.database.read("SELECT * FROM partial_copies") == []
    store.close()


def test_a_copy_of_another_process_is_left_alone_while_it_lives(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cronium_controller.store import Store; "
        "from cronium_controller.partial_copies import PartialCopies; store = Store(Path(sys.argv[1])); "
        "copy = PartialCopies(store.database, 'web01', '/x', '1' * 64); copy.__enter__(); copy.begin('/.x.1.part'); "
        "print('begun', flush=True); sys.stdin.read()"
    )
    store = Store(tmp_path / "controller.db")
    words = [sys.executable, "-c", program, str(tmp_path / "controller.db")]
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        PartialCopies(store.database, "web01", "/x", "1" * 64) as ours,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert ours.resumable() is None
        process.kill()
        process.wait()
        assert ours.resumable() == Partial("/.x.1.part", None)
    store.close()
