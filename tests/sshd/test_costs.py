"""What a job costs, counted and not timed: connections, sessions, frames, payload bytes."""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import asyncssh
import pytest

from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_runner.wire import frames
from cronium_runner.wire.frames import Kind
from openssh import OpenSSHServer
from remote_host import RemoteHost

MOST_CALLS = 300
"""Of functions of ours for one job: a tenth above what they are."""
MOST_TIMERS = 4
"""asyncssh's for packets that it might acknowledge, and none of ours."""

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


def sessions(server: OpenSSHServer) -> int:
    return server.count_in_log("Starting session")


async def test_a_warm_job_is_one_frame_out_and_no_new_session(shared: RemoteHost) -> None:
    async with shared.controller() as controller:
        job = Job(load(shared.script("true")))
        first = await controller.submit(shared.host, job)
        await first.result()
        await first.wait_acknowledged()
        agent = (await controller.reachable.reach(shared.host)).agent
        before = sessions(shared.server)
        for _ in range(5):
            sent = agent.frames_sent
            execution = await controller.submit(shared.host, job)
            result = await execution.result()
            assert agent.frames_sent == sent + 1, "SUBMIT"
            await execution.wait_acknowledged()
            assert agent.frames_sent == sent + 2, "ACKNOWLEDGE, which nobody waits for"
            assert result.exit_code == 0
        assert sessions(shared.server) == before
        assert controller.connections_opened == 1


async def test_a_job_of_a_new_controller_is_two_writes(shared: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its greeting goes with the submission, and what the host has answered is not asked about once more at the end."""
    job = Job(load(shared.script("true")))
    async with shared.controller() as controller:  # the host has runner and payload
        await (await controller.submit(shared.host, job)).result()
    written: list[list[Kind]] = []
    write = asyncssh.SSHClientChannel.write

    def noted(channel: asyncssh.SSHClientChannel[bytes], data: bytes, datatype: int | None = None) -> None:
        written.append([Kind(frame.kind) for frame in frames.FrameReader().feed(data)])
        write(channel, data, datatype)

    monkeypatch.setattr(asyncssh.SSHClientChannel, "write", noted)
    async with shared.controller() as controller:
        execution = await controller.submit(shared.host, job)
        await execution.result()
        await execution.wait_acknowledged()
    assert written == [[Kind.HELLO, Kind.SUBMIT], [Kind.ACKNOWLEDGE]]


async def test_a_warm_job_calls_few_functions_here(shared: RemoteHost) -> None:
    """Of ours, and timers of the event loop: its heap is sorted anew for each that is set and cancelled."""
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            name = frame.f_code.co_filename
            counts["ours"] += "/cronium_controller/" in name or "/cronium_runner/" in name
            counts["timers"] += frame.f_code is asyncio.TimerHandle.__init__.__code__

    async with shared.controller() as controller:
        job = Job(load(shared.script("true")))
        for number in range(12):
            if number == 2:
                sys.setprofile(count)
            execution = await controller.submit(shared.host, job)
            await execution.result()
            await execution.wait_acknowledged()
        sys.setprofile(None)
    assert 100 < counts["ours"] / 10 <= MOST_CALLS, counts
    assert counts["timers"] / 10 <= MOST_TIMERS, counts


async def test_a_payload_travels_once(shared: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "manifest.yaml").write_text("version: v1\nentrypoint: x.sh\n")
    (tmp_path / "job" / "x.sh").write_text("true\n")
    (tmp_path / "job" / "noise").write_bytes(os.urandom(3_000_000))
    job = Job(load(tmp_path / "job"))
    async with shared.controller() as controller:
        await (await controller.submit(shared.host, Job(load(shared.script("true"))))).result()
        agent = (await controller.reachable.reach(shared.host)).agent
        sent = agent.frames_sent
        await (await controller.submit(shared.host, job)).result()
        pieces = len(list(job.payload.pieces()))
        assert agent.frames_sent >= sent + 1 + pieces + 1
        sent = agent.frames_sent
        await (await controller.submit(shared.host, job)).result()
        assert agent.frames_sent <= sent + 2
    async with shared.controller() as controller:  # another controller, and another agent: the host has it
        await (await controller.submit(shared.host, job)).result()
        assert (await controller.reachable.reach(shared.host)).agent.frames_sent <= 3


async def test_a_failed_first_connection_is_one_failure_for_all_and_tried_again_later(shared: RemoteHost) -> None:
    from cronium_controller.errors import HostKeyError

    async with shared.controller(host_keys="strict", known_hosts="/dev/null") as controller:
        job = Job(load(shared.script("true")))
        failed = await asyncio.gather(*[controller.submit(shared.host, job) for _ in range(5)], return_exceptions=True)
        assert [isinstance(each, HostKeyError) for each in failed] == [True] * 5
        before = shared.server.count_in_log("Connection from")
        with pytest.raises(HostKeyError):
            await controller.submit(shared.host, job)
        assert shared.server.count_in_log("Connection from") == before + 1
