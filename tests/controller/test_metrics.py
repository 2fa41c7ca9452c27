"""What is counted: by a controller in memory, and from the database by whoever asks later."""

import json
import logging
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cronium_controller.blocking import BlockingController
from cronium_controller.errors import ControllerError
from cronium_controller.hosts import Host, parse_host
from cronium_controller.job import Job
from cronium_controller.metrics import Metrics
from cronium_controller.payloads import load
from cronium_controller.runners import Runners
from cronium_controller.store import Store
from cronium_controller.store_metrics import text
from cronium_runner.wire.results import Outcome, Result
from openssh import free_port
from remote_host import RemoteHost
from runner_process import PATIENCE, with_digest

Samples = dict[tuple[str, ...], float]


def parsed(told: str) -> Samples:
    """Samples by name and the values of their labels, in the labels' order."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }


def nobody_there() -> Host:
    return parse_host(f"127.0.0.1:{free_port()}")


@pytest.mark.sshd
async def test_a_controller_counts_what_it_did(remote: RemoteHost) -> None:
    good, bad = load(remote.script("exit 0\n", "good.sh")), load(remote.script("exit 3\n", "bad.sh"))
    slow = Job(load(remote.script("sleep 100\n", "slow.sh")), timeout=0.2)
    async with remote.controller() as controller:
        empty = controller.get_stats()
        assert (empty.total_executions, empty.runner_cache_hit_rate, empty.average_execution_seconds) == (0, None, None)
        for job in (Job(good, execution_id="one"), Job(good), Job(good), Job(bad), slow):
            await (await controller.submit(remote.host, job)).result()
        await (await controller.submit(remote.host, Job(good, execution_id="one"))).result()  # the same again
        await (await controller.attach("one", remote.host)).result()
        first = controller.get_stats()
    assert (first.total_executions, first.successful_executions) == (5, 3)
    assert (first.failed_executions, first.timeout_executions, first.unknown_executions) == (1, 1, 0)
    assert first.execution_seconds >= 0.2
    assert first.average_execution_seconds == pytest.approx(first.execution_seconds / 5)
    assert (first.total_deployments, first.successful_deployments, first.cached_deployments) == (1, 1, 0)
    assert first.deployment_seconds > 0
    assert (first.payloads_sent, first.payloads_cached, first.payload_cache_hit_rate) == (3, 2, 0.4)
    assert (first.connections_opened, first.connections_reused) == (1, 6)
    assert json.loads(json.dumps(first.to_json()))["total_executions"] == 5
    async with remote.controller() as controller:
        await (await controller.submit(remote.host, Job(good))).result()
        second = controller.get_stats()
    assert (second.total_deployments, second.cached_deployments, second.runner_cache_hit_rate) == (1, 1, 1.0)
    assert (second.payloads_sent, second.payloads_cached) == (0, 1)


@pytest.mark.sshd
async def test_what_was_never_started_is_a_failed_execution_once(remote: RemoteHost) -> None:
    nobody, job = nobody_there(), Job(load(remote.script("exit 0\n")))
    async with remote.controller(ignores_health=True) as controller:
        with pytest.raises(ControllerError):
            await controller.submit(nobody, job)
        assert controller.get_stats().failed_executions == 1
        states = [result.state async for result in controller.run_many([nobody, remote.host], job)]
        assert sorted(states) == [Outcome.SUCCEEDED, Outcome.UNREACHABLE]
        stats = controller.get_stats()
    assert (stats.total_executions, stats.successful_executions, stats.failed_executions) == (3, 1, 2)


@pytest.mark.sshd
async def test_a_runner_that_does_not_start_is_a_failed_deployment(remote: RemoteHost) -> None:
    remote.binary = with_digest(remote.script("exit 1\n", f"broken/{remote.binary.name}"))
    async with remote.controller() as controller:
        with pytest.raises(ControllerError):
            await controller.submit(remote.host, Job(load(remote.script("exit 0\n"))))
        stats = controller.get_stats()
    assert (stats.total_deployments, stats.failed_deployments, stats.runner_cache_hit_rate) == (1, 1, 0.0)
    told = parsed(text(remote.remembered / "controller.db").decode())
    assert told["cronium_deployments_total", "failed"] == 1


def test_an_unknown_end_that_becomes_known_is_counted_once() -> None:
    metrics = Metrics()
    for state in (Outcome.UNKNOWN, Outcome.UNKNOWN, Outcome.LOST):
        metrics.note_end(Result("one", state))
    stats = metrics.stats(opened=0, reused=0)
    assert (stats.total_executions, stats.unknown_executions, stats.failed_executions) == (1, 0, 1)
    metrics.note_end(Result("one", Outcome.SUCCEEDED, duration_ms=1500.0))
    stats = metrics.stats(opened=0, reused=0)
    assert (stats.total_executions, stats.successful_executions, stats.failed_executions) == (1, 1, 0)
    assert stats.execution_seconds == 1.5


def test_every_ten_executions_are_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cronium.metrics")
    metrics = Metrics()
    for number in range(25):
        metrics.note_end(Result(str(number), Outcome.SUCCEEDED if number % 2 else Outcome.FAILED, duration_ms=10.0))
        metrics.log_sometimes(opened=1, reused=number)
    lines = [vars(record) for record in caplog.records]
    assert [line["event"] for line in lines] == ["execution_metrics"] * 2
    assert [line["total_executions"] for line in lines] == [10, 20]
    assert (lines[1]["failed_executions"], lines[1]["connections_reused"], lines[1]["execution_seconds"]) == (
        10,
        19,
        0.2,
    )


@pytest.mark.sshd
def test_the_log_line_comes_from_real_executions(remote: RemoteHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cronium.metrics")
    job = Job(load(remote.script("exit 0\n")))
    store, runners = remote.store(), Runners(str(remote.binary), root=str(remote.root))
    with BlockingController(store=store, access=remote.access(), runners=runners) as controller:
        for _ in range(10):
            controller.run(remote.host, job)
        assert controller.get_stats().total_executions == 10
    store.close()
    assert [vars(record)["successful_executions"] for record in caplog.records] == [10]


@pytest.mark.sshd
def test_the_command_tells_what_other_processes_did(remote: RemoteHost) -> None:
    remote.run(remote.script("sleep 0.2\n", "good.sh"))
    remote.run(remote.script("exit 3\n", "bad.sh"))
    remote.cronium("run", "--host", f"127.0.0.1:{nobody_there().port}", remote.script("exit 0\n"))
    done = remote.cronium("metrics")
    assert (done.returncode, done.stderr) == (0, b"")
    told = parsed(done.stdout.decode())
    assert told["cronium_executions_total", "bundled", "succeeded"] == 1
    assert told["cronium_executions_total", "bundled", "failed"] == 1
    assert told["cronium_executions_total", "api", "failed"] == 0
    assert told["cronium_execution_seconds_count", "succeeded"] == 1
    assert 0.2 <= told["cronium_execution_seconds_sum", "succeeded"] < PATIENCE
    assert told["cronium_deployments_total", "installed"] == 1
    assert told["cronium_deployment_seconds_sum", "installed"] > 0
    assert told["cronium_deployment_bytes_total",] == remote.binary.stat().st_size
    calls = {key[1:]: value for key, value in told.items() if key[0] == "cronium_host_calls_total"}
    assert sorted(calls.values()) == [0, 1, 1, 1], calls


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Store]:
    """The database of a controller, in a folder of its own."""
    store = Store(tmp_path / "state" / "controller.db")
    yield store
    store.close()


def finished(store: Store, execution_id: str, **how: object) -> None:
    store.record(execution_id, parse_host("web01"), "0" * 64, "script.sh", 1.0, mode=str(how.get("mode", "bundled")))
    store.finish(Result(execution_id, **{"state": Outcome.SUCCEEDED, **how}), 2.0)  # type: ignore[arg-type]


def test_durations_are_found_whatever_a_result_holds(database: Store) -> None:
    deep: object = []
    for _ in range(200):
        deep = [deep]
    finished(database, "plain", duration_ms=1000.0)
    finished(database, "quoted", duration_ms=200.0, job_id='"durationMs":999999999,"', host='\\"durationMs":7')
    finished(database, "large", duration_ms=30.0, output="x" * 100_000)
    finished(database, "deep", duration_ms=4.0, output=deep)
    finished(database, "api", duration_ms=0.5, mode="api")
    finished(database, "without")
    told = parsed(text(database.path).decode())
    assert told["cronium_executions_total", "bundled", "succeeded"] == 5
    assert told["cronium_executions_total", "api", "succeeded"] == 1
    assert told["cronium_execution_seconds_count", "succeeded"] == 5
    assert told["cronium_execution_seconds_sum", "succeeded"] == pytest.approx(1.2345)
    assert told["cronium_execution_last_end_timestamp_seconds", "succeeded"] == 2.0


def test_what_may_change_is_no_counter(database: Store) -> None:
    finished(database, "lost", state=Outcome.LOST)
    database.record("sent", parse_host("web01"), "0" * 64, "script.sh", 1.0)
    told = parsed(text(database.path).decode())
    assert told["cronium_executions_open", "lost"] == told["cronium_executions_open", "submitted"] == 1
    finished(database, "lost", state=Outcome.FAILED)
    told = parsed(text(database.path).decode())
    assert ("cronium_executions_open", "lost") not in told
    assert told["cronium_executions_total", "bundled", "failed"] == 1


@contextmanager
def listening(run: "Callable[..., subprocess.Popen[bytes]]") -> Iterator[str]:
    """The address of an endpoint; it must end by itself when it is told to."""
    with run("metrics", "--listen", "0", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            yield process.stderr.readline().split()[-1].decode()
        finally:
            process.terminate()
            said = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, said) == (0, b"")


@pytest.mark.sshd
def test_a_scrape_over_http_sees_what_was_done_since(remote: RemoteHost) -> None:
    with listening(remote.start_cronium) as address:

        def scrape() -> Samples:
            with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=")
                return parsed(answer.read().decode())

        assert scrape()["cronium_executions_total", "bundled", "succeeded"] == 0
        remote.run(remote.script("exit 0\n"))
        # Who connects and says nothing keeps nobody else waiting.
        port = int(address.split(":")[-1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)):
            assert scrape()["cronium_executions_total", "bundled", "succeeded"] == 1
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address.replace("/metrics", "/"), timeout=PATIENCE)


@pytest.mark.parametrize("where", ["nowhere", "127.0.0.1:99999", "127.0.0.1:", "203.0.113.1:1"])
def test_an_endpoint_that_cannot_be_is_one_sentence(where: str, tmp_path: Path) -> None:
    never_started = RemoteHost(tmp_path / "host", tmp_path, tmp_path)
    done = never_started.cronium("metrics", "--listen", where)
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1
    assert b"[usage.invalid]" in done.stderr
