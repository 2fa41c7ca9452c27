"""The runner's way onto a host: by SFTP or without, verified, once, and nothing left when it fails."""

import os
from pathlib import Path

import pytest

from cronium_controller.connection import open_connection
from cronium_controller.errors import ControllerError, DeployError
from cronium_controller.install import Deployment, Runners, deploy, start_agent
from remote_host import RemoteHost

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
        done, _ = await deploy(connection, Runners(str(binary or remote.binary), root=str(remote.root)))
    finally:
        await connection.close()
    return done


def left(remote: RemoteHost) -> list[str]:
    """What is below the install root."""
    return sorted(os.listdir(remote.root)) if remote.root.exists() else []


@pytest.mark.parametrize("method", ["sftp", "cat"])
async def test_the_runner_is_uploaded_once(remote: RemoteHost, method: str) -> None:
    if method == "cat":
        restart(remote, NO_SFTP)
    first = await deployed(remote)
    assert (first.method, first.uploaded_bytes) == (method, remote.binary.stat().st_size)
    installed = Path(first.path)
    before = installed.stat()
    second = await deployed(remote)
    assert (second.path, second.method, second.uploaded_bytes) == (first.path, "present", 0)
    assert (installed.stat().st_ino, installed.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert left(remote) == [installed.parent.name]


async def test_a_host_that_has_the_runner_is_not_asked_about_it(remote: RemoteHost) -> None:
    await deployed(remote)
    sessions = remote.server.count_in_log("Starting session")
    connection = await open_connection(remote.host, remote.access())
    agent, deployment = await start_agent(connection, Runners(str(remote.binary), root=str(remote.root)))
    assert deployment is None
    assert remote.server.count_in_log("Starting session") == sessions + 1
    agent.close()
    await connection.close()


async def test_a_host_without_it_gets_it_on_the_way(remote: RemoteHost) -> None:
    connection = await open_connection(remote.host, remote.access())
    agent, deployment = await start_agent(connection, Runners(str(remote.binary), root=str(remote.root)))
    assert deployment is not None
    assert deployment.uploaded_bytes > 0
    assert agent.agent["protocol"] == [1, 1]
    agent.close()
    await connection.close()


async def test_a_shell_that_prints_first_and_one_session_at_a_time_are_no_hindrance(remote: RemoteHost) -> None:
    noise = f"echo Welcome; echo {'a' * 64}; echo on stderr >&2"
    restart(remote, "MaxSessions 1", f'ForceCommand {noise}; eval "$SSH_ORIGINAL_COMMAND"')
    async with remote.controller() as controller:
        assert (await controller.deploy(remote.host)).method == "cat"
        sessions = remote.server.count_in_log("Starting session")
        with pytest.raises(ControllerError, match="no execution"):
            await controller.status("never-there", remote.host)
        assert remote.server.count_in_log("Starting session") == sessions + 1


async def test_what_arrives_damaged_is_not_run_and_not_left(remote: RemoteHost, tmp_path: Path) -> None:
    """A `cat` that loses the last byte, as a full or broken disk would."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cat").write_text("#!/bin/sh\nexec head -c -1\n")
    (tmp_path / "bin/cat").chmod(0o755)
    restart(remote, NO_SFTP, path=tmp_path / "bin")
    with pytest.raises(DeployError) as refused:
        await deployed(remote)
    assert (refused.value.code, refused.value.exit_status) == ("deploy.digest_mismatch", 125)
    assert left(remote) == []


async def test_a_host_that_cannot_verify_is_one_clear_error(remote: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cat", "chmod", "ls", "mkdir", "rm", "uname"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    remote.server._environment["PATH"] = str(tmp_path / "bin")
    restart(remote)
    with pytest.raises(DeployError, match="sha256sum, openssl and shasum"):
        await deployed(remote)
    assert left(remote) == []


async def test_no_room_is_one_clear_error_and_leaves_nothing(remote: RemoteHost) -> None:
    restart(remote, 'ForceCommand ulimit -f 0; eval "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(DeployError, match=r"upload failed|File size|too large") as refused:
        await deployed(remote)
    assert refused.value.code == "deploy.failed"
    assert left(remote) == []


@pytest.mark.parametrize("system", ["Linux riscv64", "Darwin arm64"])
async def test_another_system_or_architecture_is_said(remote: RemoteHost, tmp_path: Path, system: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uname").write_text(f"#!/bin/sh\necho {system}\n")
    (tmp_path / "bin/uname").chmod(0o755)
    restart(remote, path=tmp_path / "bin")
    with pytest.raises(DeployError) as refused:
        await deployed(remote)
    assert refused.value.code == "deploy.unsupported"
    assert system.split()[system.startswith("Linux")] in refused.value.message
    assert left(remote) == []


async def test_a_binary_for_another_architecture_is_not_sent(remote: RemoteHost, tmp_path: Path) -> None:
    other = tmp_path / "cronium-runner-0.0.0-linux-s390x"
    other.write_bytes(remote.binary.read_bytes())
    with pytest.raises(DeployError, match="s390x") as refused:
        await deployed(remote, other)
    assert refused.value.code == "deploy.unsupported"
    assert left(remote) == []


async def test_a_binary_that_does_not_start_there_says_what_it_said(remote: RemoteHost, tmp_path: Path) -> None:
    broken = tmp_path / remote.binary.name
    broken.write_text(
        '#!/bin/sh\n[ "$1" = install ] && mkdir -p "$2" && cp "$0" "$2/cronium-runner" && exit\n'
        "echo no luck today >&2; exit 3\n"
    )
    async with remote.controller(runners=Runners(str(broken), root=str(remote.root))) as controller:
        with pytest.raises(DeployError, match=r"no luck today.*exit status 3"):
            await controller.status("x", remote.host)


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
