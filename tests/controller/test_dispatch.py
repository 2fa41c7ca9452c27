"""The Python API over a real SSH server: what a job costs, what a lost connection means, and what survives it."""

import asyncio
import hashlib
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_controller.dispatch import Job
from cronium_controller.errors import RefusedError
from cronium_controller.hosts import Host
from cronium_controller.install import Runners
from cronium_controller.payloads import Payload, load
from cronium_runner.wire.results import Outcome
from remote_host import RemoteHost, collect, resident_memory_growth
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.sshd

WAITING = "echo waiting\nwhile [ ! -e {flag} ]; do sleep 0.02; done\nprintf '%s' {text}\n"
"""A script that goes on only when the test lets it."""


def through(remote: RemoteHost, proxy: TcpProxy) -> Host:
    """The host as reached through a proxy."""
    return replace(remote.host, name="proxied", address="127.0.0.1", port=proxy.port)


def payload(remote: RemoteHost, text: str) -> Payload:
    return load(remote.script(text))


async def test_a_warm_job_costs_one_round_trip_and_no_payload_bytes(remote: RemoteHost) -> None:
    trip = 0.4
    job = Job(payload(remote, "echo hello"))
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = through(remote, proxy)
        assert (await (await controller.submit(host, job)).result()).state is Outcome.SUCCEEDED
        sent = proxy.sent_bytes
        proxy.delay = trip / 2
        started = time.monotonic()
        execution = await controller.submit(host, job)
        found = await collect(execution)
        assert (await execution.result()).state is Outcome.SUCCEEDED
        assert trip <= time.monotonic() - started < 2 * trip
        assert found == {"stdout": b"hello\n", "stderr": b""}
        await execution.wait_acknowledged()
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


async def test_both_streams_arrive_byte_for_byte_in_bounded_memory(remote: RemoteHost) -> None:
    size = 100_000_000
    maker = remote.script(
        "import hashlib, os, sys\n"
        "block = os.urandom(1000003)\n"
        "digests = [hashlib.sha256(), hashlib.sha256()]\n"
        f"left = {size}\n"
        "while left:\n"
        "    piece = block[:left]\n"
        "    for number in (1, 2):\n"
        "        os.write(number, piece) if len(piece) < 4096 else open(number, 'wb', 0, closefd=False).write(piece)\n"
        "    left -= len(piece)\n",
        "maker.py",
    )
    async with remote.controller() as controller:
        await (await controller.submit(remote.host, Job(payload(remote, "true")))).result()
        with resident_memory_growth() as grown:
            execution = await controller.submit(remote.host, Job(load(maker)))
            digests = {1: hashlib.sha256(), 2: hashlib.sha256()}
            async for piece in execution.pieces():
                digests[piece.stream].update(piece.data)
            result = await execution.result()
        assert (result.stdout.bytes, result.stderr.bytes) == (size, size) == tuple(execution.offsets)
        assert [digests[1].hexdigest(), digests[2].hexdigest()] == [result.stdout.sha256, result.stderr.sha256]
        assert grown[0] < 64 * 1024 * 1024


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


async def test_an_execution_survives_its_controller(remote: RemoteHost, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    script = remote.script(WAITING.format(flag=flag, text="after"))
    command = ["run", "--host", remote.server.target, "--execution-id", "orphan", script]
    with remote.start_cronium(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(8) == b"waiting\n"
        process.send_signal(signal.SIGKILL)
    flag.touch()
    async with remote.controller() as controller:
        record = controller.store.find("orphan")
        assert record is not None
        assert (record.state, record.result) == ("accepted", None)
        execution = await controller.attach("orphan", record.host)
        assert (await collect(execution))["stdout"] == b"waiting\nafter"
        assert (await execution.result()).state is Outcome.SUCCEEDED


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
        assert (await asyncio.wait_for(collect(look), 10))["stdout"] == b"ing\n"
        execution.cancel()
        assert (await execution.result()).state is Outcome.CANCELLED


async def test_nothing_secret_is_remembered(remote: RemoteHost) -> None:
    secret = "correct-horse-battery"
    job = Job(payload(remote, "cronium.getVariable PASSWORD | sha256sum"), secrets={"PASSWORD": secret})
    assert secret not in repr(job)
    async with remote.controller() as controller:
        assert (await (await controller.submit(remote.host, job)).result()).state is Outcome.SUCCEEDED
    for path in (*remote.remembered.iterdir(), *remote.state.rglob("*")):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


async def test_an_agent_that_talks_nonsense_is_a_lost_channel_not_a_result(
    remote: RemoteHost, tmp_path: Path, carrier: Path
) -> None:
    impostor = tmp_path / "impostor" / carrier.name
    impostor.parent.mkdir()
    hello = "from cronium_runner.wire import frames as f, exactjson as j; import os, sys"
    program = (
        f"{hello}; os.write(1, f.MAGIC + f.encode_json(1, 0, {{'protocol': [1, 1]}}));"
        " r = f.FrameReader(); [os.write(1, f.encode(68, x.channel, b'[]'))"
        " for p in iter(lambda: os.read(0, 9999), b'') for x in r.feed(p) if x.kind == 2]"
    )
    text = carrier.read_text().replace("-m cronium_runner", f'-c "{program}"')
    impostor.write_text(text)
    runners = Runners(str(impostor), root=str(tmp_path / "impostor-lib"))
    async with remote.controller(runners=runners) as controller:
        execution = await controller.submit(remote.host, Job(payload(remote, "true")))
        result = await execution.result()
    assert (result.state, result.error_code) == (Outcome.UNKNOWN, "channel.lost")
