"""The Python API over a real SSH server: what a job costs, what a lost connection means, and what survives it."""

import asyncio
import inspect
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_controller.blocking import ControllerOptions, ManyOptions
from cronium_controller.channel import AgentChannel
from cronium_controller.dispatch import Controller
from cronium_controller.errors import RefusedError
from cronium_controller.hosts import Host
from cronium_controller.job import Job
from cronium_controller.patience import Patience
from cronium_controller.payloads import Payload, load
from cronium_runner.wire.frames import Kind
from cronium_runner.wire.results import Outcome, exit_status
from remote_host import RemoteHost, collect
from runner_process import PATIENCE, wait_until
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.sshd

WAITING = "echo waiting\nwhile [ ! -e {flag} ]; do sleep 0.02; done\nprintf '%s' {text}\n"
"""A script that goes on only when the test lets it."""


def through(remote: RemoteHost, proxy: TcpProxy) -> Host:
    """The host as reached through a proxy."""
    return replace(remote.host, name="proxied", address="127.0.0.1", port=proxy.port)


def payload(remote: RemoteHost, text: str) -> Payload:
    return load(remote.script(text))


def test_the_blocking_face_takes_what_the_other_takes() -> None:
    for call, options in ((Controller.__init__, ControllerOptions), (Controller.run_many, ManyOptions)):
        taken = {name for name, each in inspect.signature(call).parameters.items() if each.kind is each.KEYWORD_ONLY}
        assert taken == set(options.__annotations__)


async def test_a_warm_job_costs_one_round_trip_and_no_payload_bytes(remote: RemoteHost) -> None:
    job = Job(payload(remote, "echo hello"))
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = through(remote, proxy)
        first = await controller.submit(host, job)
        assert (await first.result()).state is Outcome.SUCCEEDED
        await first.wait_acknowledged()
        sent, turns = proxy.sent_bytes, proxy.turns
        execution = await controller.submit(host, job)
        found = await collect(execution)
        assert (await execution.result()).state is Outcome.SUCCEEDED
        assert found == {"stdout": b"hello\n", "stderr": b""}
        await execution.wait_acknowledged()
        assert proxy.turns - turns == 2, "the submission, and the acknowledgement that nobody waits for"
        assert proxy.sent_bytes - sent < 1000
        assert proxy.connections == controller.connections_opened == 1


async def test_first_calls_at_once_share_one_connection_and_one_session(remote: RemoteHost) -> None:
    remote.server.stop()
    remote.server._options = ["MaxSessions 1"]
    remote.server.start()
    async with remote.controller() as controller:
        await controller.deploy(remote.host)
        sessions = remote.server.count_in_log("Starting session")
        jobs = [Job(payload(remote, f"echo {number}")) for number in range(20)]
        executions = await asyncio.gather(*(controller.submit(remote.host, job) for job in jobs))
        results = await asyncio.gather(*(collect(execution) for execution in executions))
        assert [found["stdout"] for found in results] == [b"%d\n" % number for number in range(20)]
        assert controller.connections_opened == 2  # deploy's own, and one for all jobs
        assert remote.server.count_in_log("Starting session") == sessions + 1


async def test_who_leaves_while_a_payload_is_on_its_way_over_a_dead_line_leaves_at_once(remote: RemoteHost) -> None:
    folder = remote.folder / "large"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\ninterpreter: bash\nentrypoint: script.sh\n")
    (folder / "script.sh").write_text("echo never\n")
    (folder / "data").write_bytes(os.urandom(30_000_000))
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        await controller.deploy(remote.host)
        proxy.cut_after(3_000_000, "hole", is_sent=True)
        run = controller.run_many([through(remote, proxy)], Job(load(folder), execution_id="large"))
        following = asyncio.ensure_future(anext(aiter(run)))
        async with asyncio.timeout(60):
            while not proxy.cuts:
                await asyncio.sleep(0.01)
            channel = (await controller.reachable.reach(through(remote, proxy))).agent
            while channel.is_writable:  # until all buffers on the way are full
                await asyncio.sleep(0.01)
            run.cancel()
            run.detach()
            result = await following
        assert result.state is Outcome.UNKNOWN
    assert remote.executions() == []


async def test_a_cut_connection_is_unknown_and_attaching_again_misses_no_byte(
    remote: RemoteHost, tmp_path: Path
) -> None:
    flag = tmp_path / "go"
    job = Job(payload(remote, WAITING.format(flag=flag, text="the-end")), execution_id="cut")
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        execution = await controller.submit(through(remote, proxy), job)
        seen = b""
        async for piece in execution.pieces():
            seen += piece.data
            proxy.cut()
        lost = await execution.result()
        assert (lost.state, lost.error_code, lost.exit_code) == (Outcome.UNKNOWN, "channel.lost", None)
        assert "cut" in (lost.error_message or "")
        record = controller.store.find("cut")
        assert record is not None
        assert record.result is None
        flag.touch()
        again = await controller.attach(
            "cut", through(remote, proxy), offsets=(execution.offsets[0], execution.offsets[1])
        )
        rest = await collect(again)
        result = await again.result()
        assert (seen + rest["stdout"], result.state) == (b"waiting\nthe-end", Outcome.SUCCEEDED)
        assert controller.connections_opened == 2
        await again.wait_acknowledged()
        record = controller.store.find("cut")
        assert record is not None
        assert record.is_acknowledged
    starts = [line for line in remote.history("cut") if line["state"] == "running"]
    assert len(starts) == 1


@pytest.mark.parametrize("cut_in", [700, 5_000, 60_000, 200_000])
async def test_a_connection_cut_within_the_output_loses_and_doubles_nothing(remote: RemoteHost, cut_in: int) -> None:
    job = Job(payload(remote, "for n in $(seq 30000); do echo line $n; done"), execution_id="cut")
    found = bytearray()
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = through(remote, proxy)
        await (await controller.submit(host, Job(payload(remote, "true")))).result()
        proxy.cut_in = cut_in
        execution = await controller.submit(host, job)
        while True:
            async for piece in execution.pieces():
                assert (piece.stream, piece.offset) == (1, len(found))
                found += piece.data
            if (await execution.result()).state is not Outcome.UNKNOWN:
                break
            execution = await controller.attach("cut", host, offsets=(len(found), 0))
        assert controller.connections_opened == 2
    assert bytes(found) == b"".join(b"line %d\n" % number for number in range(1, 30001))


async def test_the_same_id_again_is_not_started_again(remote: RemoteHost) -> None:
    job = Job(payload(remote, "echo $$ | tee -a ../../../starts; cronium.output pid $$"), execution_id="once")
    async with remote.controller() as controller:
        first = await controller.submit(remote.host, job)
        results = [await first.result()]
        for _ in range(3):
            again = await controller.submit(remote.host, job)
            assert again.was_started is False
            results.append(await again.result())
        assert first.was_started is True
        assert len({str(result.to_json()) for result in results}) == 1
        with pytest.raises(RefusedError) as refused:
            await controller.submit(remote.host, replace(job, input={"other": True}))
        assert refused.value.code == "execution.id_conflict"
    assert len((remote.state / "starts").read_text().splitlines()) == 1


async def test_fifty_submissions_of_one_id_at_once_are_one_start(remote: RemoteHost) -> None:
    job = Job(payload(remote, "echo $$ >> ../../../starts; sleep 0.2; echo done"), execution_id="once")
    async with remote.controller() as controller:
        executions = await asyncio.gather(*(controller.submit(remote.host, job) for _ in range(50)))
        found = await asyncio.gather(*(collect(execution) for execution in executions))
        assert [each["stdout"] for each in found] == [b"done\n"] * 50
        assert sum(bool(execution.was_started) for execution in executions) == 1
    assert len((remote.state / "starts").read_text().splitlines()) == 1


async def test_what_is_refused_started_nothing_and_says_why(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        with pytest.raises(RefusedError) as refused:
            await controller.attach("never-there", remote.host)
        assert refused.value.code == "execution.not_found"
        with pytest.raises(RefusedError, match="timeout"):
            await controller.submit(remote.host, Job(payload(remote, "true"), timeout=0))
        rejected = await controller.submit(remote.host, Job(load(remote.script("#!/no/such\n", "job"))))
        assert not rejected.is_running
        assert (await rejected.result()).state is Outcome.REJECTED


async def test_an_attach_without_following_shows_what_is_there_and_ends(remote: RemoteHost, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    job = Job(payload(remote, WAITING.format(flag=flag, text="x")), execution_id="running")
    async with remote.controller() as controller:
        execution = await controller.submit(remote.host, job)
        async for _ in execution.pieces():
            break
        look = await controller.attach("running", remote.host, offsets=(4, 0), follow=False)
        assert (await asyncio.wait_for(collect(look), PATIENCE))["stdout"] == b"ing\n"
        execution.cancel()
        assert (await execution.result()).state is Outcome.CANCELLED


def test_a_job_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("true")
    assert "hunter2" not in repr(Job(load(tmp_path / "job.sh"), secrets={"PASSWORD": "hunter2"}))


ACCEPTED = (Kind.ACCEPTED, {"executionId": "one", "started": True})
UNUSABLE = (Kind.REFUSED, {"code": "state.unusable", "message": "the disk is full"})
SUCCEEDED = {"state": "succeeded", "exitCode": 0}


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([(Kind.FINISHED, [])], "channel.protocol"),
        ([ACCEPTED, (Kind.FINISHED, {"executionId": "other", **SUCCEEDED})], "channel.protocol"),
        ([ACCEPTED, UNUSABLE], "state.unusable"),
    ],
    ids=["nonsense", "the result of another", "refused after it was accepted"],
)
async def test_an_agent_that_fails_us_leaves_the_outcome_unknown(
    remote: RemoteHost, impostor: Callable[..., Any], answers: list[Any], code: str
) -> None:
    async with remote.controller(runners=impostor(*answers).runners) as controller:
        controller.store.record("other", Host("elsewhere", "elsewhere"), "ab" * 32, "other.sh", 1.0)
        execution = await controller.submit(remote.host, Job(payload(remote, "true"), execution_id="one"))
        result = await execution.result()
        assert (result.state, result.error_code, exit_status(result)) == (Outcome.UNKNOWN, code, 255)
        assert "cronium attach one" in (result.error_message or "")
        records = [controller.store.find(name) for name in ("one", "other")]
        assert [(each.state, each.result) for each in records if each] == [("unknown", None), ("submitted", None)]


async def test_an_attach_that_the_host_cannot_serve_is_unknown(
    remote: RemoteHost, impostor: Callable[..., Any]
) -> None:
    async with remote.controller(runners=impostor(UNUSABLE).runners) as controller:
        result = await (await controller.attach("one", remote.host)).result()
    assert (result.state, result.error_code) == (Outcome.UNKNOWN, "state.unusable")
    assert "the disk is full" in (result.error_message or "")


async def test_a_conflicting_submission_leaves_the_first_ones_record(remote: RemoteHost, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    job = Job(payload(remote, WAITING.format(flag=flag, text="x")), execution_id="one")
    async with remote.controller() as controller:
        execution = await controller.submit(remote.host, job)
        with pytest.raises(RefusedError):
            await controller.submit(remote.host, replace(job, input=1))
        record = controller.store.find("one")
        assert record is not None
        assert record.state == "accepted"
        flag.touch()
        await execution.result()


@pytest.mark.parametrize(("on_disconnect", "said"), [("continue", ["DETACH"]), ("cancel", ["CANCEL", "DETACH"])])
async def test_a_submission_that_is_left_early_tells_the_host(
    remote: RemoteHost, impostor: Callable[..., Any], on_disconnect: str, said: list[str]
) -> None:
    mute = impostor()
    async with remote.controller(runners=mute.runners) as controller:
        job = Job(payload(remote, "true"), execution_id="one", on_disconnect=on_disconnect)
        submitting = asyncio.ensure_future(controller.submit(remote.host, job))
        await asyncio.to_thread(wait_until, mute.heard, "the submission to arrive")
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await asyncio.to_thread(wait_until, lambda: mute.heard() == ["SUBMIT", *said], "the host to be told")
        record = controller.store.find("one")
        assert record is not None
        assert record.state == "unknown"


async def test_several_may_wait_for_one_result(remote: RemoteHost, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    async with remote.controller() as controller:
        job = Job(payload(remote, WAITING.format(flag=flag, text="x")))
        execution = await controller.submit(remote.host, job)
        waiting = [asyncio.ensure_future(execution.result()) for _ in range(3)]
        async with asyncio.timeout(PATIENCE):
            flag.touch()
            async for _ in execution.pieces():
                pass
            results = await asyncio.gather(*waiting)
        assert {result.state for result in results} == {Outcome.SUCCEEDED}


async def test_an_agent_that_does_all_the_talking_hears_from_us(
    remote: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentChannel, "ping_seconds", 0.05)
    async with remote.controller() as controller:
        execution = await controller.submit(remote.host, Job(payload(remote, "while :; do echo x; sleep 0.01; done")))
        channel = (await controller.reachable.reach(remote.host)).agent
        sent = channel.frames_sent
        async with asyncio.timeout(PATIENCE):
            async for _ in execution.pieces():
                if channel.frames_sent >= sent + 3:
                    break
        execution.cancel()
        assert (await execution.result()).state is Outcome.CANCELLED


async def test_a_store_that_fails_while_leaving_keeps_nothing_open(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        channel = (await controller.reachable.reach(remote.host)).agent
        execution = await controller.submit(remote.host, Job(payload(remote, "true")))
        await execution.result()
        controller.store.database.write("PRAGMA query_only = 1")  # before the host has acknowledged
    assert channel.lost is not None


async def test_id_whose_record_was_removed_is_unknown_not_refused(remote: RemoteHost) -> None:
    """It was started once, so a submission of it may not say that nothing was."""
    job = Job(payload(remote, "true"), execution_id="removed")
    async with remote.controller() as controller:
        first = await controller.submit(remote.host, job)
        assert (await first.result()).state is Outcome.SUCCEEDED
        await first.wait_acknowledged()
        record = remote.state / "executions" / first.id
        while record.exists():  # its work directory is being removed as well
            shutil.rmtree(record, ignore_errors=True)
        again = await controller.submit(remote.host, job)
        result = await again.result()
        # `lost` where its guardian had not seen its supervisor's end yet, and made the record again.
        told = (result.state, result.error_code)
        assert told in [(Outcome.UNKNOWN, "state.damaged"), (Outcome.LOST, "execution.lost")]


async def test_a_script_that_removes_its_record_is_lost(remote: RemoteHost) -> None:
    """Its spools are gone with what they held, so no output vouches for the result, nor against it."""
    job = Job(payload(remote, 'echo hi; cd /; rm -rf "${CRONIUM_WORK_DIR%/work}"'), execution_id="removed")
    async with remote.controller() as controller:
        first = await controller.submit(remote.host, job)
        results = [await first.result()]
        results.append(await (await controller.attach("removed", remote.host)).result())
        results.append(await (await controller.submit(remote.host, job)).result())
        for result in results:
            assert (result.state, result.error_code) == (Outcome.LOST, "execution.lost")
        assert (await (await controller.attach("removed", remote.host)).result()).state is Outcome.LOST


async def test_a_joined_execution_has_the_time_it_began_with(
    remote: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = []
    until_end = Patience.until_end

    def noted(patience: Patience, timeout: float, *, has_api: bool = False) -> float:
        allowed.append(timeout)
        return until_end(patience, timeout, has_api=has_api)

    monkeypatch.setattr(Patience, "until_end", noted)
    flag = tmp_path / "go"
    job = Job(payload(remote, WAITING.format(flag=flag, text="x")), execution_id="one", timeout=5000)
    async with remote.controller() as controller:
        first = await controller.submit(remote.host, job)
        joined = await controller.submit(remote.host, replace(job, timeout=7))
        assert (first.was_started, joined.was_started) == (True, False)
        flag.touch()
        assert (await joined.result()).state is (await first.result()).state is Outcome.SUCCEEDED
    assert len(allowed) == 2
    assert min(allowed) > 7


async def test_a_job_is_checked_once_for_all_hosts(remote: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(payload(remote, "true"), input=["x" * 100])
    hosts = [replace(remote.host, name=f"host{number}", address=f"127.0.0.{number}") for number in (1, 2)]
    monkeypatch.setattr("cronium_runner.wire.exactjson.check_value", lambda _: pytest.fail("checked again"))
    async with remote.controller() as controller:
        states = [result.state async for result in controller.run_many(hosts, job)]
        submitted = [each async for each in controller.run_many(hosts, job).submit_only()]
    assert states == [Outcome.SUCCEEDED] * 2
    assert [each.failure for each in submitted] == [None] * 2
