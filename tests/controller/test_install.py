"""The runner's way onto a host: by SFTP or without, verified, once, and nothing left when it fails."""

import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_controller.connection import open_connection
from cronium_controller.errors import ControllerError, DeployError
from cronium_controller.install import Deployment, deploy
from cronium_controller.runners import Runners
from cronium_controller.sessions import Connection
from cronium_controller.starting import start_agent
from cronium_runner.wire.names import INSTALL_ROOT
from remote_host import RemoteHost
from runner_process import with_digest
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.sshd

NO_SFTP = "Subsystem sftp /bin/false"


def restart(remote: RemoteHost, *options: str, path: Path | None = None) -> None:
    """Starts the server with further options; `path` is searched first on the host."""
    remote.server.stop()
    remote.server._options = list(options)
    if path is not None:
        remote.server._environment["PATH"] = f"{path}:{os.environ['PATH']}"
    remote.server.start()


async def deployed(remote: RemoteHost, binary: Path | None = None) -> Deployment:
    """Deploys over a connection of its own."""
    connection = await open_connection(remote.host, remote.access())
    try:
        done, _ = await deploy(connection, Runners(str(binary or remote.binary), root=str(remote.root), pauses=(0.01,)))
    finally:
        await connection.close()
    return done


def left(remote: RemoteHost) -> list[str]:
    """What is below the install root."""
    return sorted(os.listdir(remote.root)) if remote.root.exists() else []


async def test_a_host_that_has_the_runner_is_not_asked_about_it(remote: RemoteHost) -> None:
    await deployed(remote)
    sessions = remote.server.count_in_log("Starting session")
    connection = await open_connection(remote.host, remote.access())
    agent, deployment = await start_agent(connection, Runners(str(remote.binary), root=str(remote.root)))
    assert deployment is None
    assert remote.server.count_in_log("Starting session") == sessions + 1
    agent.close()
    await connection.close()


@pytest.mark.parametrize("options", [[], [NO_SFTP]], ids=["sftp", "shell"])
async def test_a_root_below_home_is_one_folder_for_all(remote: RemoteHost, options: list[str]) -> None:
    restart(remote, *options)
    folder = remote.root.parent / "it's here"
    # Sessions begin in the account's own home directory, and the test's files are elsewhere.
    root = f"~/{os.path.relpath(folder.resolve(), Path(pwd.getpwuid(os.getuid()).pw_dir).resolve())}"
    stale = folder / ".upload-0123"
    folder.mkdir(mode=0o700)
    stale.touch()
    os.utime(stale, (0, 0))
    connection = await open_connection(remote.host, remote.access())
    runners = Runners(str(remote.binary), root=root, pauses=())
    agent, deployment = await start_agent(connection, runners)
    agent.close()
    assert deployment is not None
    assert deployment.method == ("cat" if options else "sftp")
    done, _ = await deploy(connection, runners)
    assert done.uploaded_bytes == 0, "it is found there again"
    await connection.close()
    assert [path.name for path in folder.iterdir()] == [Path(done.path).parent.name]


def test_a_root_has_one_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRONIUM_RUNNER_ROOT", raising=False)
    spelled = {"~": ".", "~/": ".", "~/a": "a", "~//a": "a", "/opt/~/a": "/opt/~/a", "-a": "./-a", "~/-a": "./-a"}
    assert {root: Runners(root=root).root for root in spelled} == spelled
    assert Runners().root == INSTALL_ROOT
    monkeypatch.setenv("CRONIUM_RUNNER_ROOT", "~/b")
    assert Runners().root == "b"


async def test_a_shell_that_prints_first_and_one_session_at_a_time_are_no_hindrance(remote: RemoteHost) -> None:
    noise = f"echo Welcome; echo {'a' * 64}; echo on stderr >&2"
    restart(remote, "MaxSessions 1", f'ForceCommand {noise}; eval "$SSH_ORIGINAL_COMMAND"')
    async with remote.controller() as controller:
        assert (await controller.deploy(remote.host)).method == "cat"
        sessions = remote.server.count_in_log("Starting session")
        with pytest.raises(ControllerError, match="no execution"):
            await controller.status("never-there", remote.host)
        assert remote.server.count_in_log("Starting session") == sessions + 1


async def test_a_host_that_cannot_verify_is_one_clear_error(remote: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cat", "chmod", "ls", "mkdir", "rm", "uname"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    remote.server._environment["PATH"] = str(tmp_path / "bin")
    restart(remote)
    with pytest.raises(DeployError, match="sha256sum, openssl and shasum"):
        await deployed(remote)
    assert left(remote) == []


def big_runner(remote: RemoteHost, tmp_path: Path) -> Path:
    """A runner of 8 MiB, most of it after the script's end: more than is in flight at once."""
    big = tmp_path / "big" / remote.binary.name
    big.parent.mkdir()
    big.write_bytes(remote.binary.read_bytes() + b"exit\n" + os.urandom(8 << 20))
    return with_digest(big)


def clear_uploads(remote: RemoteHost) -> None:
    """Removes what could not be removed over a dead connection; `deploy` does it an hour later."""
    for path in remote.root.glob(".upload-*"):
        path.unlink()


@pytest.mark.parametrize("options", [(), (NO_SFTP,)], ids=["sftp", "cat"])
async def test_stalled_upload_goes_on_over_another_connection(
    remote: RemoteHost, tmp_path: Path, options: tuple[str, ...]
) -> None:
    restart(remote, *options)
    runners = Runners(str(big_runner(remote, tmp_path)), root=str(remote.root), pauses=(0.01,) * 20, stall_seconds=1.5)
    async with TcpProxy(remote.server.port) as proxy:
        host = replace(remote.host, port=proxy.port)
        connection = await open_connection(host, remote.access())
        proxy.cut_after(1 << 20, "hole", is_sent=True)
        others: list[Connection] = []

        async def reconnect() -> Connection:
            others.append(await open_connection(host, remote.access()))
            return others[-1]

        done, _ = await deploy(connection, runners, reconnect=reconnect)
        assert (proxy.cuts, done.attempts, len(others)) == (1, 2, 1)
        assert connection.is_closed()
        await others[0].close()
    assert left(remote) == [Path(done.path).parent.name]


async def test_uploads_that_never_progress_are_given_up(remote: RemoteHost, tmp_path: Path) -> None:
    """Each connection is dead after its first 30,000 bytes."""
    binary = str(big_runner(remote, tmp_path))
    runners = Runners(binary, root=str(remote.root), pauses=(0.01,) * 1000, stall_seconds=0.6, give_up_seconds=3.0)
    async with TcpProxy(remote.server.port) as proxy:
        host = replace(remote.host, port=proxy.port)
        opened: list[Connection] = []

        async def reconnect() -> Connection:
            opened.append(await open_connection(host, remote.access()))
            proxy.cut_after(30_000, "hole", is_sent=True)
            return opened[-1]

        connection = await reconnect()
        with pytest.raises(
            DeployError, match=r"given up: no byte of it was acknowledged for 3 s, in \d+ attempts"
        ) as told:
            await deploy(connection, runners, reconnect=reconnect)
        assert told.value.code == "deploy.failed"
        for each in opened:
            each.abort()
    clear_uploads(remote)


async def test_no_room_is_one_clear_error_and_leaves_nothing(remote: RemoteHost) -> None:
    restart(remote, 'ForceCommand ulimit -f 0; eval "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(DeployError, match=r"upload failed|File size|too large") as refused:
        await deployed(remote)
    assert refused.value.code == "deploy.failed"
    assert left(remote) == []


async def test_a_binary_for_another_architecture_is_not_sent(remote: RemoteHost, tmp_path: Path) -> None:
    other = tmp_path / "cronium-runner-0.0.0-linux-s390x"
    other.write_bytes(remote.binary.read_bytes())
    with pytest.raises(DeployError, match="s390x") as refused:
        await deployed(remote, other)
    assert refused.value.code == "deploy.unsupported"
    assert left(remote) == []


def test_a_binary_that_is_not_what_its_checksum_says_is_not_used(tmp_path: Path, carrier: Path) -> None:
    binary = tmp_path / carrier.name
    binary.write_bytes(b"damaged")
    (tmp_path / f"{carrier.name}.sha256").write_text(f"{'0' * 64}  {carrier.name}\n")
    with pytest.raises(DeployError) as refused:
        Runners(str(binary)).for_machine(os.uname().machine, "web01")
    assert refused.value.code == "deploy.digest_mismatch"


def test_no_binary_at_all_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ControllerError) as refused:
        Runners(str(tmp_path / "nothing")).for_machine("x86_64", "web01")
    assert refused.value.code == "binary.missing"
