"""Files to and from real OpenSSH servers: by SFTP and through the shell, cut off and gone on with, verified."""

import asyncio
import json
import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_controller import transfer
from cronium_controller.dispatch import Controller
from cronium_controller.errors import ControllerError
from cronium_controller.hosts import OPENSSH, Host
from cronium_controller.transfer import Source
from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import wait_until
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.sshd
NO_SFTP = ["Subsystem nothing internal-sftp"]
LARGE = 12_000_000
"""Bytes: several times what is on its way at once."""

Serve = Callable[[list[str]], RemoteHost]


@pytest.fixture
def serve(tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(options)`: a host of the test's own, whose SFTP sessions begin in its home directory."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    with ExitStack() as started:

        def start(options: list[str]) -> RemoteHost:
            folder = tmp_path / f"remote{len(list(tmp_path.glob('remote*')))}"
            usual = [f"Subsystem sftp internal-sftp -d {folder / 'home'}"]
            taken = options if any("Subsystem" in line for line in options) else [*options, *usual]
            made = RemoteHost(folder, carrier, tmp_path / "lib", options=taken)
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
            return started.enter_context(made)

        yield start


@pytest.fixture(params=["sftp", "shell", "one session", OPENSSH])
def remote(request: pytest.FixtureRequest, serve: Serve) -> RemoteHost:
    """A host with SFTP, one without, one that allows a single session, and such a one by OpenSSH's program."""
    options = {"sftp": [], "shell": NO_SFTP, "one session": ["MaxSessions 1"], OPENSSH: ["MaxSessions 1"]}
    made = serve(options[request.param])
    made.connection = OPENSSH if request.param == OPENSSH else None
    return made


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large file"
    path.write_bytes(os.urandom(LARGE))
    return path


async def put(
    controller: Controller, remote: RemoteHost, path: Path, target: str, host: Host | None = None
) -> transfer.Copied:
    with Source(str(path)) as source:
        return await transfer.put(
            controller.connections, controller.store, host or remote.host, source, target, lambda _: None
        )


async def get(controller: Controller, remote: RemoteHost, source: str, target: str) -> transfer.Copied:
    return await transfer.get(controller.connections, controller.store, remote.host, source, target, lambda _: None)


async def test_there_and_back_with_permissions_into_files_and_folders(
    remote: RemoteHost, tmp_path: Path, large: Path
) -> None:
    large.chmod(0o751)
    (remote.home / "it's a folder").mkdir()
    heard: list[int] = []
    async with remote.controller() as controller:
        with Source(str(large)) as source:
            copied = await transfer.put(
                controller.connections, controller.store, remote.host, source, "~/new", heard.append
            )
        assert (copied.bytes, copied.sent, copied.is_verified) == (LARGE, LARGE, True)
        assert (heard[0], heard[-1], sorted(heard) == heard) == (0, LARGE, True)
        await put(controller, remote, large, f"{remote.home}/it's a folder")
        await put(controller, remote, large, f"{remote.home}/it's a folder/")
        for name in ("new", "it's a folder/large file"):
            assert (remote.home / name).read_bytes() == large.read_bytes()
            assert stat.S_IMODE((remote.home / name).stat().st_mode) == 0o751
        back = await get(controller, remote, "~/it's a folder/large file", f"{tmp_path}/back/")
        assert back.path == f"{tmp_path}/back/large file"
        assert Path(back.path).read_bytes() == large.read_bytes()
        assert (back.sha256, back.is_verified) == (copied.sha256, True)
        assert (await get(controller, remote, "/proc/version", f"{tmp_path}/version")).bytes > 0
        (tmp_path / "empty").touch()
        assert (await put(controller, remote, tmp_path / "empty", "~/empty")).bytes == 0
        assert (await get(controller, remote, "~/empty", f"{tmp_path}/nothing")).bytes == 0
    assert sorted(os.listdir(remote.home)) == ["empty", "it's a folder", "new"]
    assert os.listdir(remote.home / "it's a folder") == ["large file"]


async def test_what_is_there_already_is_not_sent_and_what_differs_is_replaced(
    remote: RemoteHost, tmp_path: Path
) -> None:
    source, there = tmp_path / "source", remote.home / "there"
    source.write_bytes(b"a" * 1000)
    async with remote.controller() as controller:
        assert (await put(controller, remote, source, str(there))).sent == 1000
        assert (await put(controller, remote, source, str(there))).sent == 0
        there.write_bytes(b"b" * 1000)  # as large, and something else
        assert (await put(controller, remote, source, str(there))).sent == 1000
    assert there.read_bytes() == source.read_bytes()


async def test_what_cannot_be_copied_is_one_sentence_and_leaves_nothing(
    remote: RemoteHost, tmp_path: Path, large: Path
) -> None:
    (remote.home / "folder").mkdir()
    names = sorted(os.listdir(tmp_path))
    async with remote.controller() as controller:
        cases: list[tuple[Callable[[], Awaitable[object]], str]] = [
            (lambda: put(controller, remote, tmp_path / "nope", "x"), "cannot read .*nope: No such file"),
            (lambda: put(controller, remote, tmp_path, "x"), "is a folder, and one file is copied at a time"),
            (lambda: put(controller, remote, large, "/proc/nope/x"), "cannot copy .*/proc/nope"),
            (lambda: put(controller, remote, large, f"{remote.home}/no/such/folder/"), "cannot copy .*no/such"),
            (lambda: get(controller, remote, "~/nope", f"{tmp_path}/x"), "cannot copy ~/nope: No such file"),
            (lambda: get(controller, remote, "~/folder", f"{tmp_path}/x"), "it is a folder"),
            (lambda: get(controller, remote, "/etc/hostname", "/proc/nope/x"), "cannot copy /proc/nope"),
        ]
        for copy, said in cases:
            with pytest.raises(ControllerError, match=said) as error:
                await copy()
            assert error.value.code == "files.refused"
            assert "\n" not in error.value.message
    assert sorted(os.listdir(tmp_path)) == names
    assert os.listdir(remote.home) == ["folder"]


async def test_a_connection_that_is_cut_is_replaced_and_the_copy_goes_on(
    remote: RemoteHost, tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0.01, 0.02))
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = replace(remote.host, port=proxy.port)
        with Source(str(large)) as source:
            proxy.cut_after(8_000_000, is_sent=True)
            there: list[int] = []
            copied = await transfer.put(controller.connections, controller.store, host, source, "~/x", there.append)
        assert (copied.attempts, proxy.cuts) == (2, 1)
        assert 0 < copied.sent < LARGE
        assert (remote.home / "x").read_bytes() == large.read_bytes()
        proxy.cut_after(8_000_000)
        back = await transfer.get(
            controller.connections, controller.store, host, "~/x", f"{tmp_path}/back", lambda _: None
        )
        assert (back.attempts, proxy.cuts) == (2, 2)
        assert 0 < back.sent < LARGE
        assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert os.listdir(remote.home) == ["x"]
    assert not list(tmp_path.glob(".*.part"))


@asynccontextmanager
async def cut_off(
    remote: RemoteHost, large: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Controller, Host, Path]]:
    """A copy to ~/x that was cut off when 8 MB had travelled: a controller, the host, the partial copy's folder."""
    monkeypatch.setattr(transfer, "PAUSES", ())
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = replace(remote.host, port=proxy.port)
        proxy.cut_after(8_000_000, is_sent=True)
        with pytest.raises(ControllerError) as error:
            await put(controller, remote, large, "~/x", host)
        assert error.value.code == "channel.lost"
        [folder] = remote.home.glob(".x.*.part")
        yield controller, host, folder


async def test_a_partial_file_that_is_damaged_is_never_believed(
    remote: RemoteHost, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cut_off(remote, large, monkeypatch) as (controller, host, folder):
        with (folder / "part").open("r+b") as file:
            file.write(b"damaged")  # as if the disk had lied
        assert (await put(controller, remote, large, "~/x", host)).sent == LARGE
        assert (remote.home / "x").read_bytes() == large.read_bytes()
    assert os.listdir(remote.home) == ["x"]


async def test_a_partial_file_of_something_else_is_removed(
    remote: RemoteHost, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cut_off(remote, large, monkeypatch) as (controller, host, _):
        large.write_bytes(os.urandom(LARGE))  # another content is another copy
        assert (await put(controller, remote, large, f"{remote.home}/x", host)).sent == LARGE
        assert (remote.home / "x").read_bytes() == large.read_bytes()
    assert os.listdir(remote.home) == ["x"]


async def test_a_partial_file_here_that_is_damaged_is_never_believed(
    remote: RemoteHost, tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAUSES", ())
    (remote.home / "x").write_bytes(large.read_bytes())
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = replace(remote.host, port=proxy.port)
        proxy.cut_after(8_000_000)
        with pytest.raises(ControllerError) as error:
            await transfer.get(
                controller.connections, controller.store, host, "~/x", f"{tmp_path}/back", lambda _: None
            )
        assert error.value.code == "channel.lost"
        [partial] = tmp_path.glob(".back.*.part/part")
        with partial.open("r+b") as file:
            file.write(b"damaged")
        back = await transfer.get(
            controller.connections, controller.store, host, "~/x", f"{tmp_path}/back", lambda _: None
        )
        assert back.sent == LARGE
        assert Path(back.path).read_bytes() == large.read_bytes()
    assert not list(tmp_path.glob(".*.part"))


async def test_two_copies_of_the_same_file_to_the_same_place_at_once(remote: RemoteHost, large: Path) -> None:
    async with remote.controller() as one, remote.controller() as other:
        await asyncio.gather(*[put(each, remote, large, "~/x") for each in (one, other)])
    assert (remote.home / "x").read_bytes() == large.read_bytes()
    assert os.listdir(remote.home) == ["x"]


async def test_rc_files_that_print_are_in_no_file(serve: Serve, tmp_path: Path) -> None:
    remote = serve(NO_SFTP)
    (remote.home / ".bashrc").write_text("echo welcome; echo to you >&2\n")
    (tmp_path / "source").write_bytes(b"words")
    async with remote.controller() as controller:
        await put(controller, remote, tmp_path / "source", "~/x")
        await get(controller, remote, "~/x", f"{tmp_path}/back")
    assert (remote.home / "x").read_bytes() == (tmp_path / "back").read_bytes() == b"words"


async def test_where_no_shell_answers_sftp_does_it_alone(serve: Serve, tmp_path: Path, large: Path) -> None:
    remote = serve([f"ForceCommand internal-sftp -d {tmp_path}"])
    async with remote.controller() as controller:
        copied = await put(controller, remote, large, f"{remote.home}/x")
        assert (copied.method, copied.is_verified) == ("sftp", True)
        back = await get(controller, remote, f"{remote.home}/x", f"{tmp_path}/back")
        assert (back.method, back.is_verified) == ("sftp", False)
    assert (remote.home / "x").read_bytes() == (tmp_path / "back").read_bytes() == large.read_bytes()
    assert os.listdir(remote.home) == ["x"]


async def test_neither_sftp_nor_a_shell_is_one_sentence(serve: Serve, large: Path) -> None:
    remote = serve([*NO_SFTP, "ForceCommand echo closed on Mondays >&2; exit 9"])
    async with remote.controller() as controller:
        with pytest.raises(ControllerError, match="no SFTP, and no shell answers to commands: closed on M") as error:
            await put(controller, remote, large, "x")
    assert error.value.code == "files.refused"


# -- the commands -----------------------------------------------------------------------------------------------------


def test_put_and_get_on_the_command_line(serve: Serve, tmp_path: Path) -> None:
    remote = serve([])
    (tmp_path / "source").write_bytes(b"x" * 200_000)
    where = ("--host", remote.server.target)
    done = remote.cronium("put", *where, tmp_path / "source", "~/there")
    said = f"{remote.server.target}: {tmp_path}/source -> {remote.home}/there (200.0 kB, by sftp)\n"
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, said, b""), "no progress off a terminal"
    again = json.loads(remote.cronium("put", "--json", *where, tmp_path / "source", "~/there").stdout)
    assert (again["bytes"], again["sentBytes"], again["verified"], again["error"]) == (200_000, 0, True, None)
    done = remote.cronium("get", *where, "~/there", tmp_path / "back")
    assert done.returncode == 0
    assert (tmp_path / "back").read_bytes() == b"x" * 200_000
    refused = remote.cronium("get", *where, "~/nope", tmp_path / "back")
    assert (refused.returncode, refused.stdout) == (125, b"")
    assert refused.stderr.endswith(b"[files.refused]\n")
    told = json.loads(remote.cronium("get", "--json", *where, "~/nope", tmp_path / "back").stdout)
    assert told["error"]["code"] == "files.refused"


def test_many_hosts(serve: Serve, tmp_path: Path) -> None:
    remote = serve(["ListenAddress 127.0.0.2"])
    port, key = remote.server.port, remote.server.identity
    (tmp_path / "hosts.yaml").write_text(
        "".join(f"web{n}: {{host: 127.0.0.{n}, port: {port}, key_path: {key}}}\n" for n in (1, 2))
        + f"away: {{host: 127.0.0.1, port: 1, key_path: {key}}}\n"
    )
    (tmp_path / "source").write_bytes(b"words")
    hosts = ("--hosts", tmp_path / "hosts.yaml")
    done = remote.cronium("put", *hosts, "--on", "web[1-2]", tmp_path / "source", "~/there")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done
    done = remote.cronium("get", *hosts, "--on", "web[1-2]", "--on", "away", "~/there", tmp_path / "all")
    assert done.returncode == 101
    assert b"[host.unreachable]" in done.stderr
    found = {str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*") if path.is_file()}
    assert found == {"web1/there", "web2/there"}


def test_an_interrupted_copy_goes_on_in_the_next_process(serve: Serve, tmp_path: Path) -> None:
    remote = serve([])
    size = 100_000_000
    with open(tmp_path / "source", "wb") as file:
        for _ in range(size // 4_000_000):
            file.write(os.urandom(4_000_000))
    words = ("put", "--json", "--host", remote.server.target, tmp_path / "source", "~/there")
    with remote.start_cronium(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

        def arrived() -> bool:
            return any(path.stat().st_size > 9_000_000 for path in remote.home.glob(".there.*.part/part"))

        wait_until(arrived, "a part of it to arrive")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command again goes on" in errors
    assert not (remote.home / "there").exists()
    told = json.loads(remote.cronium(*words).stdout)
    assert 0 < told["sentBytes"] < size
    assert (remote.home / "there").stat().st_size == size
    assert os.listdir(remote.home) == ["there"]


@pytest.mark.parametrize("error", [KeyError("ours"), ValueError("ours")])
async def test_a_defect_is_not_the_server_s_fault(serve: Serve, tmp_path: Path, error: Exception) -> None:
    remote = serve([])
    (remote.home / "file").write_bytes(b"content")
    (tmp_path / "here").write_bytes(b"content")

    def fail(_: int) -> None:
        raise error

    async with remote.controller() as controller:
        with pytest.raises(type(error), match="ours"):
            await transfer.get(
                controller.connections, controller.store, remote.host, "~/file", str(tmp_path / "back"), fail
            )
        with transfer.Source(str(tmp_path / "here")) as source, pytest.raises(type(error), match="ours"):
            await transfer.put(controller.connections, controller.store, remote.host, source, "~/there", fail)


async def test_a_file_system_that_tells_no_size_has_room(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = serve([])
    (remote.home / "file").write_bytes(b"content")
    monkeypatch.setattr("os.fstatvfs", lambda _: os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255)))
    async with remote.controller() as controller:
        await get(controller, remote, "~/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"content"
