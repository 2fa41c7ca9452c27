"""Eight kinds of SSH server, and what becomes of a raw command, a copy and a job on each: works, or one known error."""

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from cronium_controller import transfer
from cronium_controller.dispatch import Controller
from cronium_controller.errors import ControllerError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.transfer import Source
from openssh import reads_bashrc, sshd_path
from remote_host import RemoteHost, collect
from runner_process import wait_until

pytestmark = pytest.mark.sshd
Serve = Callable[..., RemoteHost]
LONG = 60.0
NO_SFTP = "Subsystem nothing internal-sftp"


class Configuration(NamedTuple):
    """A server, and codes of the errors that are expected; None where it works."""

    options: tuple[str, ...] = ()
    rc: str = ""
    """What the account's .bashrc has."""
    shell: str = ""
    """The login shell: a forced command that does what sshd does with it."""
    command_status: int = 0
    job_error: str | None = None


CONFIGURATIONS = {
    "plain": Configuration(),
    "MaxSessions 1": Configuration(("MaxSessions 1",)),
    "no SFTP, a forced command": Configuration((NO_SFTP, 'ForceCommand exec sh -c "$SSH_ORIGINAL_COMMAND"')),
    "no forwarding": Configuration(("DisableForwarding yes", "AllowTcpForwarding no", "AllowStreamLocalForwarding no")),
    "rc file that prints": Configuration(rc="echo welcome; echo to you >&2"),
    "rc file that exits": Configuration(
        rc="echo closed on Mondays >&2; exit 3", command_status=3, job_error="deploy.failed"
    ),
    "SFTP only": Configuration(("ForceCommand internal-sftp",), command_status=1, job_error="deploy.failed"),
    "fish": Configuration(shell="fish"),
    "csh": Configuration(shell="csh"),
    "restricted shell": Configuration(shell="rbash"),
}
"""MaxStartups and a changed host key are below: they need something done meanwhile."""


@pytest.fixture
def serve(tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(configuration)`: a host of the test's own."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with ExitStack() as started:

        def start(configuration: Configuration) -> RemoteHost:
            options, environment = list(configuration.options), {}
            if configuration.rc and not configuration.shell and not reads_bashrc():
                pytest.skip("the account's login shell reads no .bashrc")
            if configuration.shell:
                shell = shutil.which(configuration.shell)
                if shell is None:
                    pytest.skip(f"{configuration.shell} is not installed")
                options.append(f'ForceCommand exec {shell} -c "$SSH_ORIGINAL_COMMAND"')
                environment["SHELL"] = shell
            if not any("Subsystem" in line for line in options) and not configuration.shell:
                options.append(f"Subsystem sftp internal-sftp -d {tmp_path}/remote/home")
            host = RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib", options=options, environment=environment)
            (host.home / ".bashrc").write_text(f"{configuration.rc}\n")
            return started.enter_context(host)

        yield start


@pytest.mark.parametrize("name", CONFIGURATIONS)
async def test_a_raw_command_and_a_copy(serve: Serve, tmp_path: Path, name: str) -> None:
    configuration = CONFIGURATIONS[name]
    remote = serve(configuration)
    (tmp_path / "source").write_bytes(os.urandom(300_000))
    async with remote.controller() as controller:
        client = controller.client(remote.host)
        for _ in range(2):  # before and after it is known which shell there is
            result = await client.run_async("echo words; echo aside >&2", env={"A": "b"}, timeout=LONG)
            assert (result.returncode, result.transport_used) == (configuration.command_status, "direct"), result
            assert result.stdout.endswith("words\n") == (configuration.command_status == 0)
            await client.close()
        if configuration.command_status:
            assert "closed on Mondays" in result.stderr or "sftp connections only" in result.stdout
        else:
            timed = await client.run_async("echo before; sleep 7711", timeout=3)
            assert (timed.timed_out, timed.stdout.endswith("before\n")) == (True, True)
            assert "was ended" in (timed.error or ""), "also without SSH's own signals"
            copied = await client.scp_to_async(str(tmp_path / "source"), str(remote.home / "there"))
            assert copied.success, copied
            assert (remote.home / "there").read_bytes() == (tmp_path / "source").read_bytes()
        await client.close()
        with Source(str(tmp_path / "source")) as source:
            there = str(remote.home / "again")
            put = await transfer.put(
                controller.connections, controller.store, remote.host, source, there, lambda _: None
            )
            assert put.is_verified
            back = str(tmp_path / "back")
            await transfer.get(controller.connections, controller.store, remote.host, there, back, lambda _: None)
        assert (tmp_path / "back").read_bytes() == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize("name", CONFIGURATIONS)
async def test_a_job(serve: Serve, name: str) -> None:
    configuration = CONFIGURATIONS[name]
    remote = serve(configuration)
    async with remote.controller() as controller:
        job = Job(load(remote.script("echo words; echo aside >&2; exit 4")))
        if configuration.job_error is not None:
            with pytest.raises(ControllerError) as error:
                await asyncio.wait_for(controller.submit(remote.host, job), LONG)
            assert error.value.code == configuration.job_error
            assert error.value.message.startswith(f"{remote.host.name}: ")
            assert "\n" not in error.value.message
            return
        execution = await asyncio.wait_for(controller.submit(remote.host, job), LONG)
        assert await collect(execution) == {"stdout": b"words\n", "stderr": b"aside\n"}
        assert (await execution.result()).exit_code == 4


async def test_a_changed_host_key_stops_both_before_anything_is_sent(serve: Serve) -> None:
    remote = serve(Configuration())
    async with remote.controller() as controller:
        assert (await controller.client(remote.host).run_async("true")).success
        await controller.client(remote.host).close()
    remote.server.stop()
    remote.server.renew_host_key()
    remote.server.start()
    tried = remote.server.count_in_log("Connection from"), remote.server.count_in_log("Accepted publickey")
    async with remote.controller() as controller:
        result = await controller.client(remote.host).run_async("true")
        assert (result.returncode, result.transport_used) == (255, None)
        assert result.error_code == "host.key_changed", result
        with pytest.raises(ControllerError) as error:
            await controller.submit(remote.host, Job(load(remote.script("true"))))
        assert error.value.code == "host.key_changed"
    assert remote.server.count_in_log("Connection from") <= tried[0] + 2, "no second attempt of either"
    assert remote.server.count_in_log("Accepted publickey") == tried[1]


def held_login(port: int) -> socket.socket:
    """A connection that has been let in and doesn't log in. That of the server's own probe may still hold the place."""

    def connected() -> socket.socket | None:
        somebody = socket.create_connection(("127.0.0.1", port))
        if somebody.recv(4) == b"SSH-":
            return somebody
        somebody.close()
        return None

    found: socket.socket = wait_until(connected, "the one place")
    return found


@pytest.mark.parametrize("kind", ["command", "job"])
async def test_a_server_that_throttles_logins_is_asked_again(serve: Serve, kind: str) -> None:
    """MaxStartups 1, and somebody else holds the one place until we were turned away once."""
    remote = serve(Configuration(("MaxStartups 1",)))
    with held_login(remote.server.port) as somebody:
        drops = remote.server.count_in_log("drop connection")
        async with remote.controller() as controller:
            call = asyncio.ensure_future(printed_by(controller, remote, kind))
            async with asyncio.timeout(LONG):
                while remote.server.count_in_log("drop connection") == drops:
                    await asyncio.sleep(0.02)
                somebody.close()
                assert await call == b"42\n"


async def printed_by(controller: Controller, remote: RemoteHost, kind: str) -> bytes:
    """What a command, or a job, prints."""
    if kind == "job":
        execution = await controller.submit(remote.host, Job(load(remote.script("echo $((6*7))"))))
        return (await collect(execution))["stdout"]
    client = controller.client(remote.host)
    result = await client.run_async("echo $((6*7))")
    await client.close()
    assert result.success, result
    return result.stdout.encode()
