"""Servers and accounts as they are out there: rc files that print or leave, one session only, forced commands."""

import asyncio
import time
from collections.abc import Callable

import pytest

from cronium_controller import channel
from cronium_controller.errors import ControllerError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from openssh import reads_bashrc
from remote_host import RemoteHost, collect

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
NewHost = Callable[..., RemoteHost]
in_bash = pytest.mark.skipif(not reads_bashrc(), reason="the account's login shell reads no .bashrc")


async def run(host: RemoteHost, text: str = "echo works") -> bytes:
    async with host.controller() as controller:
        execution = await controller.submit(host.host, Job(load(host.script(text))))
        printed = await collect(execution)
        assert (await execution.result()).exit_code == 0, printed
        return printed["stdout"]


@in_bash
@pytest.mark.parametrize(
    "noise", ["echo welcome", "head -c 300000 /dev/zero | tr '\\0' x", "printf '\\036cronium'; echo"]
)
async def test_an_rc_file_that_prints_is_skipped(fresh: RemoteHost, noise: str) -> None:
    (fresh.home / ".bashrc").write_text(f"{noise}\n{noise} >&2\n")
    assert await run(fresh) == b"works\n"
    assert await run(fresh) == b"works\n"


@in_bash
async def test_an_rc_file_that_prints_without_end_is_given_up(fresh: RemoteHost) -> None:
    (fresh.home / ".bashrc").write_text("yes welcome | head -c 3000000\n")
    with pytest.raises(ControllerError) as error:
        await run(fresh)
    assert "\n" not in error.value.message
    assert len(error.value.message) < 1000


@in_bash
async def test_an_rc_file_that_leaves_is_shown(fresh: RemoteHost) -> None:
    (fresh.home / ".bashrc").write_text("echo account closed since Monday >&2; exit 3\n")
    with pytest.raises(ControllerError) as error:
        await run(fresh)
    assert error.value.code == "deploy.failed"
    assert "account closed since Monday" in error.value.message
    assert error.value.message.startswith(f"{fresh.server.target}: ")


@in_bash
async def test_an_rc_file_that_never_ends_is_bounded(fresh: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(fresh)
    (fresh.home / ".bashrc").write_text("echo thinking; sleep 15\n")
    monkeypatch.setattr(channel, "GREETING_SECONDS", 3.0)
    began = time.monotonic()
    with pytest.raises(ControllerError, match="thinking"):
        await run(fresh)
    assert time.monotonic() - began < 15


async def test_no_sessions_at_all_is_one_sentence(new_host: NewHost) -> None:
    host = new_host(options=["MaxSessions 0"])
    with pytest.raises(ControllerError) as error:
        await run(host)
    assert error.value.exit_status == 255
    assert "MaxSessions" in error.value.message


async def test_a_forced_command_is_one_sentence_with_what_it_said(new_host: NewHost) -> None:
    host = new_host(options=['ForceCommand echo "only backups may run here"; exit 1'])
    with pytest.raises(ControllerError) as error:
        await run(host)
    assert "only backups may run here" in error.value.message


async def test_fifty_jobs_in_flight_over_one_connection(shared: RemoteHost) -> None:
    async with shared.controller() as controller:
        job = Job(load(shared.script("echo $CRONIUM_EXECUTION_ID; sleep 0.3")))
        executions = await asyncio.gather(*[controller.submit(shared.host, job) for _ in range(50)])
        printed = await asyncio.gather(*[collect(execution) for execution in executions])
        assert [each["stdout"] for each in printed] == [execution.id.encode() + b"\n" for execution in executions]
        assert [(await execution.result()).exit_code for execution in executions] == [0] * 50
        assert controller.connections_opened == 1
