"""One job on many hosts, over real SSH servers on loopback addresses. CRONIUM_TEST_HOSTS=200 for the full size."""

import asyncio
import errno
import fcntl
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_controller import fanout
from cronium_controller.blocking import BlockingController
from cronium_controller.dispatch import Controller
from cronium_controller.execution import Piece
from cronium_controller.hosts import Host, parse_host
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners
from cronium_runner.wire.results import Outcome, Result
from kinds import BOTH
from many_hosts import ManyHosts
from runner_process import PATIENCE, wait_until

HOSTS = int(os.environ.get("CRONIUM_TEST_HOSTS", "30"))
CONNECT_SECONDS = 3.0 if HOSTS <= 50 else 10.0
"""The default is 10 s. With few hosts a good one needs less than that, also on a busy machine."""
SLACK_SECONDS = 5.0
"""For a busy machine; two more attempts at a host that hangs take 3 s + 2 × CONNECT_SECONDS."""


@pytest.fixture
def hosts(
    tmp_path: Path, binary: Path, install_root: Path, connection: str | None
) -> Iterator[Callable[[int], ManyHosts]]:
    """`hosts(30)`: so many that answer."""
    with ExitStack() as running:

        def make(count: int) -> ManyHosts:
            many = running.enter_context(ManyHosts(tmp_path / "hosts", binary, install_root, count))
            many.connection = connection
            return many

        yield make


def reachable(hosts: ManyHosts, targets: list[str]) -> list[Host]:
    """The hosts of the targets, with the key that they let in."""
    return [parse_host(target, identity=str(hosts.server.identity)) for target in targets]


async def gathered(many: fanout.FanOut) -> list[Result]:
    return [result async for result in many]


@BOTH
async def test_every_host_has_its_own_correct_result_whatever_the_others_do(
    hosts: Callable[[int], ManyHosts],
) -> None:
    refusing, changed, hanging = max(2, HOSTS // 10), max(1, HOSTS // 20), max(1, HOSTS // 20)
    many = hosts(HOSTS - refusing - hanging - 1)
    many.change_keys(many.targets[:changed])
    good = many.targets[changed:]
    refused, silent = many.refusing(refusing), many.hanging(hanging)
    job = Job(load(many.script("echo done\n")), execution_id="mixed")
    async with many.controller(connect_timeout=60.0) as controller:
        deploying = controller.run_many(reachable(many, good), replace(job, execution_id="first"), forks=8)
        assert {result.state for result in await gathered(deploying)} == {Outcome.SUCCEEDED}
        began = time.monotonic()
        await gathered(controller.run_many(reachable(many, good), replace(job, execution_id="alone"), forks=HOSTS))
        alone = time.monotonic() - began
    began = time.monotonic()
    async with many.controller(connect_timeout=CONNECT_SECONDS) as controller:
        first, *others = reachable(many, many.targets + refused + silent)
        rows: list[fanout.Target] = [first, *others, "user@:22", "user@:22"]
        fan_out = controller.run_many(rows, job, forks=HOSTS)
        assert fan_out.total == HOSTS
        results = await gathered(fan_out)
        assert controller.reachable.is_reached(first) is False
    took = time.monotonic() - began
    by_host = {str(result.host): result for result in results}
    assert len(results) == len(by_host) == HOSTS
    for target in good:
        assert by_host[target].state is Outcome.SUCCEEDED
        assert by_host[target].execution_id == fanout.id_on("mixed", target)
    assert {by_host[target].error_code for target in many.targets[:changed]} == {"host.key_changed"}
    assert {by_host[target].error_code for target in refused + silent} == {"host.unreachable"}
    assert (by_host["user@:22"].state, by_host["user@:22"].error_code) == (Outcome.MALFORMED, "host.config")
    failures = refusing + changed + hanging + 1
    assert fan_out.tally.exit_status == min(255, 100 + failures)
    assert (fan_out.tally.verdict, fan_out.tally.failed) == ("PARTIAL SUCCESS", failures)
    ids = [fanout.id_on(execution_id, target) for execution_id in ("first", "alone", "mixed") for target in good]
    assert sorted(many.executions()) == sorted(ids)
    assert many.count_waiting() == [1] * hanging, "one that hung was tried again"
    if HOSTS > 50:  # as one of many tests it shares its machine
        assert took < CONNECT_SECONDS + 2 * alone + SLACK_SECONDS
    print(f"{HOSTS} hosts in {took:.1f} s; those that answer alone {alone:.1f} s")


async def test_connections_and_results_are_those_in_flight(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(12)
    job = Job(load(many.script("echo $CRONIUM_EXECUTION_ID\n")))
    most = 0
    open_at_once: list[int] = []
    said: dict[str, bytes] = {}

    async def hear(host: Host, piece: Piece) -> None:
        open_at_once.append(len(many.connections()))
        said[host.name] = said.get(host.name, b"") + piece.data

    async with many.controller() as controller:
        fan_out = controller.run_many(reachable(many, many.targets), job, forks=3, output=hear)
        async for result in fan_out:
            most = max(most, len(controller.reachable._reached))
            assert result.state is Outcome.SUCCEEDED
        assert not controller.reachable._reached
        wait_until(lambda: not many.connections(), "the connections to end")
    assert most <= 4, "a host's agent outlived it"
    assert 1 <= max(open_at_once) <= 4, "a host's connection outlived it"
    assert said == {target: f"{fanout.id_on(fan_out.id, target)}\n".encode() for target in many.targets}


async def test_too_many_failures_begin_nothing_further(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    job = Job(load(many.script("exit 3\n")))
    async with many.controller() as controller:
        fan_out = controller.run_many(reachable(many, many.targets), job, forks=1, stop_on_failure=True)
        results = await gathered(fan_out)
    assert [result.error_code for result in results] == [None, "fanout.stopped", "fanout.stopped"]
    assert len(many.executions()) == 1
    assert fan_out.tally.exit_status == 3, "hosts that were not begun have none"


async def test_a_cancel_reaches_every_host_and_a_detach_none(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(4)
    job = Job(load(many.script("echo begun\nsleep 1000\n")))

    async def begun(controller: Controller, work: Callable[[fanout.FanOut], None]) -> list[Result]:
        heard = asyncio.Semaphore(0)

        async def hear(_host: Host, _piece: Piece) -> None:
            heard.release()

        rows = reachable(many, many.targets)
        fan_out = controller.run_many(rows, replace(job, execution_id=work.__name__), forks=3, output=hear)
        results = asyncio.ensure_future(gathered(fan_out))
        for _ in range(3):
            await asyncio.wait_for(heard.acquire(), PATIENCE)
        work(fan_out)
        return await results

    async with many.controller() as controller:
        left = await begun(controller, fanout.FanOut.detach)
        assert Counter(result.state for result in left) == {Outcome.UNKNOWN: 3, Outcome.SKIPPED: 1}
        for result in left[:3]:
            await controller.status(
                result.execution_id, parse_host(str(result.host), identity=str(many.server.identity))
            )
        cancelled = await begun(controller, fanout.FanOut.cancel)
        assert Counter(result.state for result in cancelled) == {Outcome.CANCELLED: 3, Outcome.SKIPPED: 1}
        for result in left[:3]:
            where = parse_host(str(result.host), identity=str(many.server.identity))
            execution = await controller.attach(result.execution_id, where)
            execution.cancel()
            assert (await execution.result()).state is Outcome.CANCELLED


def everywhere(many: ManyHosts, targets: list[str]) -> list[str]:
    """The words for `cronium run`."""
    return [word for target in targets for word in ("--host", target)]


def test_lines_of_several_hosts_are_whole_and_equal_ones_fold(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    script = many.script("echo one; printf two\n")
    done = many.cronium("run", *everywhere(many, many.targets), script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.decode().splitlines()) == sorted(
        f"{target}: {word}" for target in many.targets for word in ("one", "two")
    )
    assert b"SUCCESS: 3 succeeded of 3 hosts" in done.stderr
    assert b"\x1b" not in done.stderr, "no animation and no colour off a terminal"
    done = many.cronium("run", "--fold", *everywhere(many, many.targets), script)
    assert done.stdout.count(b"one\ntwo\n") == 1
    assert b"(3)" in done.stdout
    bad = many.refusing(1)
    done = many.cronium("run", "--quiet", *everywhere(many, [many.targets[0], *bad, "user@:22"]), script)
    assert (done.returncode, done.stdout) == (102, b"")
    assert b"host.unreachable" in done.stderr
    assert b"host.config" in done.stderr


def test_json_is_a_line_a_host_and_a_summary(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    done = many.cronium("run", "--json", *everywhere(many, many.targets * 2), many.script("echo one; exit 4\n"))
    *results, summary = map(json.loads, done.stdout.splitlines())
    assert [result["stdout"]["text"] for result in results] == ["one\n"] * 3
    assert (done.returncode, summary["exitStatus"], summary["verdict"]) == (4, 4, "FAILED")
    assert summary["states"] == {"failed": 3}


@BOTH
def test_after_the_controller_was_killed_wait_has_every_result(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(HOSTS)
    go = many.folder / "go"
    script = many.script(f"echo begun; while ! [ -e {go} ]; do sleep 0.1; done\n")
    words = ["--execution-id", "night", "--forks", HOSTS, *everywhere(many, many.targets)]
    process = many.start_cronium("run", "--quiet", *words, script)
    for target in many.targets:
        wait_until(many.execution(fanout.id_on("night", target)).exists, "all begun", 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    go.touch()
    done = many.cronium("wait", "--json", "night")
    *results, summary = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, summary["verdict"]) == (0, "SUCCESS"), done.stderr
    assert {result["executionId"] for result in results} == {fanout.id_on("night", target) for target in many.targets}
    assert len(results) == HOSTS == len(many.executions())
    for result in results:
        starts = [line for line in many.history(result["executionId"]) if "script" in line]
        assert len(starts) == 1


@BOTH
def test_an_interrupt_cancels_on_all_hosts_and_waits(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    script = many.script("echo begun; sleep 1000\n")
    words = ["--execution-id", "long", *everywhere(many, many.targets)]
    process = many.start_cronium("run", "--quiet", *words, script)
    for target in many.targets:
        many.wait_output(fanout.id_on("long", target), b"begun")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert {many.wait_result(name)["state"] for name in many.executions()} == {"cancelled"}


def test_the_same_without_async(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    job = Job(load(many.script("echo done\n")))
    runners = Runners(str(many.binary), root=str(many.root))
    with BlockingController(store=many.store(), access=many.access(), runners=runners) as controller:
        results = list(controller.run_many(reachable(many, many.targets), job, forks=1))
        assert [result.state for result in results] == [Outcome.SUCCEEDED] * 2
        left = controller.run_many(reachable(many, many.targets), job, forks=1)
        assert next(left).state is Outcome.SUCCEEDED
        left.close()
        controller.controller.store.close()


def test_many_are_left_running_and_all_asked_later(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    go = many.folder / "go"
    script = many.script(f"echo begun; while ! [ -e {go} ]; do sleep 0.1; done; echo done\n")
    words = [*everywhere(many, many.targets), *everywhere(many, many.refusing(1)), "--host", "user@:22"]
    done = many.cronium("run", "--detach", "--execution-id", "left", *words, script)
    assert (done.returncode, done.stdout) == (102, b"left\n")
    assert b"submitted on 3 of 5 hosts; results with: cronium wait left" in done.stderr
    ids = [fanout.id_on("left", target) for target in many.targets]
    for execution_id in ids:
        many.wait_output(execution_id, b"begun")
    told = many.cronium("status", "left").stdout.decode().splitlines()
    never = [fanout.id_on("left", many.refusing(1)[0]), "-"]
    assert sorted(line.split()[0] for line in told) == sorted([*ids, *never])
    begun = sorted(f"{target}: begun" for target in many.targets)
    assert sorted(many.cronium("logs", "left").stdout.decode().splitlines()) == begun
    listed = many.cronium("ps", "--json", *everywhere(many, many.targets[:2]), "--host", "user@:22")
    assert (listed.returncode, b"host.config" in listed.stderr) == (101, True)
    assert {json.loads(line)["host"] for line in listed.stdout.splitlines()} == set(many.targets[:2])
    following = many.start_cronium("attach", "left", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    go.touch()
    stdout, stderr = following.communicate(timeout=60)
    assert following.returncode == 102, stderr
    assert sorted(stdout.decode().splitlines()) == sorted([*begun, *(f"{target}: done" for target in many.targets)])
    assert b"PARTIAL SUCCESS: 3 succeeded, 2 failed of 5 executions" in stderr
    ended = many.cronium("wait", *ids)
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 3)
    collected = many.cronium("gc", "--dry-run", *everywhere(many, many.targets[:2])).stdout.decode()
    assert [line.split(": ")[0] for line in collected.splitlines() if "left:" in line] != []


def test_a_malformed_row_of_the_hosts_file_fails_alone(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    rows = "".join(f"  web{number}: {{host: {target}, groups: web}}\n" for number, target in enumerate(many.targets))
    listed = many.folder / "hosts.yaml"
    listed.write_text(f"hosts:\n{rows}  web9: {{host: web9, port: 99999, groups: [web]}}\n")
    script = many.script("echo done\n")
    done = many.cronium("run", "--json", "--hosts", listed, "--on", "web", script)
    *results, summary = map(json.loads, done.stdout.splitlines())
    states = {result["host"]: result["state"] for result in results}
    assert states == {"web0": "succeeded", "web1": "succeeded", "web9": "malformed"}, done.stderr
    assert (done.returncode, summary["verdict"]) == (101, "PARTIAL SUCCESS")
    assert many.cronium("run", "--hosts", listed, "--on", "web0", script).returncode == 0
    alone = many.cronium("run", "--hosts", listed, "--on", "web9", script)
    assert (alone.returncode, b"hosts.yaml:4: web9: port" in alone.stderr) == (125, True), alone.stderr


def test_lines_stay_whole_where_their_reader_is_slow(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(4)
    script = many.script("seq -f \"%06g $(printf 'x%.0s' $(seq 100))\" 1 5000 | tee /dev/stderr\n")
    ours, theirs = os.pipe()
    words = ["run", "--execution-id", "much", *everywhere(many, many.targets), script]
    with many.start_cronium(*words, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while piece := os.read(ours, 3000):  # less than was written: the pipe is always full
            shown += piece
        os.close(ours)
    assert process.returncode == 0
    lines = [line for line in shown.split(b"\n") if b": 00" in line or b"xx" in line]
    torn = [line for line in lines if not re.fullmatch(rb"127\S+: \d{6} x{100}", line)]
    assert (len(lines), torn[:3]) == (4 * 2 * 5000, [])


def test_what_hosts_said_before_they_were_ended_is_folded_too(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    script = many.script("echo begun; sleep 1000\n")
    done = many.cronium("run", "--fold", "--timeout", "5", *everywhere(many, many.targets), script)
    assert done.stdout.count(b"begun\n") == 1
    assert b"(3, timed out)" in done.stdout


def test_an_interrupt_while_hosts_are_submitted_to_says_what_may_run(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    silent = many.hanging(1)
    script = many.script("echo begun; sleep 1000\n")
    address, port = silent[0].split(":")
    inventory = many.folder / "silent.yaml"
    inventory.write_text(f"hosts:\n  silent: {{host: {address}, port: {port}, connect_timeout: 300}}\n")
    words = ["--detach", "--execution-id", "left", "--hosts", inventory, "--on", "silent"]
    words += [*everywhere(many, many.targets), script]
    with many.start_cronium("run", *words, stderr=subprocess.PIPE) as process:
        for target in many.targets:
            many.wait_output(fanout.id_on("left", target), b"begun")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 255
    assert b"nothing was submitted" not in stderr
    assert b"cronium attach left, end it with: cronium cancel left" in stderr
    done = many.cronium("cancel", "left")
    assert (done.returncode, done.stderr.count(b": cancelled\n")) == (0, 2)


def test_an_interrupt_before_any_host_is_reached_is_130_and_a_second_one_tells_how_to_look(
    hosts: Callable[[int], ManyHosts],
) -> None:
    many = hosts(2)
    silent = many.hanging(2)
    script = many.script("trap '' TERM; echo begun; sleep 1000\n")
    with many.start_cronium("run", *everywhere(many, silent), script, stderr=subprocess.PIPE) as process:
        wait_until(lambda: sum(many.count_waiting()), "a connection")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, b"2 not begun of 2 hosts" in stderr) == (130, True), stderr
    words = ["run", "--json", "--execution-id", "long", *everywhere(many, many.targets), script]
    with many.start_cronium(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for target in many.targets:
            many.wait_output(fanout.id_on("long", target), b"begun")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while b"interrupt again" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    *results, summary = map(json.loads, stdout.splitlines())
    assert {result["host"]: result["state"] for result in results} == dict.fromkeys(many.targets, "unknown")
    assert (process.returncode, summary["exitStatus"]) == (255, 255)
    assert b"being ended on its host" in stderr
    assert b"cronium attach long" in stderr
    assert many.cronium("wait", "long").returncode == 130


async def test_what_no_host_has_answered_yet_is_cancelled_too_and_left_at_once(
    hosts: Callable[[int], ManyHosts],
) -> None:
    many = hosts(2)
    script = many.script("sleep 1000\n")
    everywhere = reachable(many, many.targets)
    async with many.controller() as controller:
        warm = Job(load(script), execution_id="warm", timeout=1)
        await gathered(controller.run_many(everywhere, warm, keep_connections=True))  # they have the payload now
        agents = wait_until(lambda: len(found := many.agents()) == 2 and found, "the supervisors to end")
        for pid in agents:
            os.kill(pid, signal.SIGSTOP)
        try:
            stopped = controller.run_many(everywhere, Job(load(script), execution_id="stopped"), keep_connections=True)
            gathering = asyncio.ensure_future(gathered(stopped))
            ids = [stopped.execution_id(host) for host in everywhere]
            async with asyncio.timeout(60):
                while not all(controller.store.find(execution_id) for execution_id in ids):
                    await asyncio.sleep(0.01)
                stopped.cancel()
                stopped.detach()
                results = await gathering
        finally:
            for pid in agents:
                os.kill(pid, signal.SIGCONT)
        assert [result.state for result in results] == [Outcome.UNKNOWN] * 2
        for execution_id, host in zip(ids, everywhere, strict=True):
            wait_until((many.execution(execution_id) / "state.jsonl").exists, "its start")
            ended = await (await controller.attach(execution_id, host)).result()
            assert ended.state is Outcome.CANCELLED


@pytest.mark.parametrize("end", ["cancel", "detach"])
async def test_a_run_that_is_ended_in_its_first_steps_begins_nothing(
    hosts: Callable[[int], ManyHosts], end: str
) -> None:
    many = hosts(3)
    script = many.script("echo done\n")
    async with many.controller() as controller:
        for steps in range(8):
            run = controller.run_many(reachable(many, many.targets), Job(load(script)))
            gathering = asyncio.ensure_future(gathered(run))
            for _ in range(steps):
                await asyncio.sleep(0)
            getattr(run, end)()
            assert [result.error_code for result in await gathering] == ["fanout.stopped"] * 3, steps
    assert many.executions() == []


@pytest.mark.parametrize("end", ["cancel", "detach"])
async def test_a_host_that_stalls_before_anything_is_submitted_to_it_is_given_up(
    hosts: Callable[[int], ManyHosts], end: str
) -> None:
    """Here while the way back to the runtime API is opened, on a connection that stands."""
    many = hosts(1)
    script = many.script("echo done\n")
    async with many.controller() as controller:
        first = controller.run_many(reachable(many, many.targets), Job(load(script)), keep_connections=True)
        await gathered(first)
        done = many.executions()
        stalled = many.server.session_pids()
        for pid in stalled:
            os.kill(pid, signal.SIGSTOP)
        try:
            job = Job(load(script), execution_id="stalled", mode="api")
            run = controller.run_many(reachable(many, many.targets), job, keep_connections=True)
            gathering = asyncio.ensure_future(gathered(run))
            async with asyncio.timeout(60):
                while controller._live._tunnels is None:
                    await asyncio.sleep(0.01)
                getattr(run, end)()
                [result] = await gathering
        finally:
            for pid in stalled:
                os.kill(pid, signal.SIGCONT)
        assert (result.state, result.error_code) == (Outcome.SKIPPED, "fanout.stopped")
        assert controller.store.find("stalled") is None
    assert many.executions() == done


def test_an_interrupted_command_has_a_result_for_every_host(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    gate = many.folder / "up"
    words = [
        *everywhere(many, many.targets),
        "--",
        f"trap 'echo down' TERM; echo up; echo x >> {gate}; sleep 1000 & wait",
    ]
    for style in ("--json", "--fold"):
        with many.start_cronium("exec", style, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_until(lambda: gate.exists() and gate.read_text() == "x\nx\n", "both to run")
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        gate.unlink()
        assert process.returncode == 130
        if style == "--json":
            *results, summary = map(json.loads, stdout.splitlines())
            told = {result["host"]: (result["state"], result["stdout"]["text"]) for result in results}
            assert told == dict.fromkeys(many.targets, ("cancelled", "up\ndown\n"))
            assert summary["states"] == {"cancelled": 2}
        else:
            assert b"(2, cancelled)\n" in stdout, stderr
            assert stdout.count(b"up\ndown\n") == 1


def test_runners_are_put_on_many_hosts_and_all_are_looked_at(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    bad = many.refusing(1)
    where = everywhere(many, many.targets + bad)
    done = many.cronium("deploy", *where)
    assert done.returncode == 101, done.stderr
    assert sorted(line.split(": ")[0] for line in done.stdout.decode().splitlines()) == sorted(many.targets)
    told = {
        each["host"]: each for each in map(json.loads, many.cronium("deploy", "--json", *where).stdout.splitlines())
    }
    assert {host: "path" in each for host, each in told.items()} == dict.fromkeys(many.targets, True) | {bad[0]: False}
    assert told[bad[0]]["error"]["code"] == "host.unreachable"
    assert many.cronium("deploy", "--history", *where).returncode == 0
    done = many.cronium("doctor", *where)
    assert done.returncode == 101
    for target in many.targets:
        assert f"{target}: ok    state directory" in done.stdout.decode()


async def test_a_defect_at_one_host_is_its_own_result(
    hosts: Callable[[int], ManyHosts], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = hosts(2)
    job = Job(load(many.script("echo done\n")), execution_id="odd")
    async with many.controller() as controller:
        submit = controller.submit

        async def broken(host: Host, *given: Any, **named: Any) -> Any:
            if host.name == many.targets[0]:
                raise KeyError("what nobody expected")
            return await submit(host, *given, **named)

        monkeypatch.setattr(controller, "submit", broken)
        results = {
            str(each.host): each for each in await gathered(controller.run_many(reachable(many, many.targets), job))
        }
        first, second = (results[target] for target in many.targets)
        assert (first.state, first.error_code) == (Outcome.REJECTED, "controller.internal"), "nothing was sent"
        assert second.state is Outcome.SUCCEEDED

        async def hear(_host: Host, _piece: Piece) -> None:
            raise ValueError("of whoever listens")

        with pytest.raises(ValueError, match="of whoever listens"):
            await gathered(
                controller.run_many(reachable(many, many.targets[1:]), replace(job, execution_id="heard"), output=hear)
            )


def on_terminal(many: ManyHosts, *words: object, answer: bytes = b"", stdout: int | None = None, **env: str) -> str:
    """What a terminal of 40 columns shows of `cronium WORDS`; `answer` is typed whenever a passphrase is asked for."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 40))
    environment = {"TERM": "xterm"} | env
    with many.start_cronium(*words, stdin=theirs, stdout=stdout or theirs, stderr=theirs, env=environment):
        os.close(theirs)
        shown, asked = b"", 0
        while piece := _read(ours):
            shown += piece
            if answer and shown.count(b"Passphrase") > asked:
                asked += 1
                os.write(ours, answer)
        os.close(ours)
    return shown.decode()


def _read(terminal: int) -> bytes:
    """What is written next; nothing once nobody has the terminal open."""
    try:
        return os.read(terminal, 65536)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def test_a_status_line_fits_the_terminal_it_is_on(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    words = ["run", *everywhere(many, many.targets), many.script("sleep 0.5; exit 3\n")]
    with (many.folder / "out").open("wb") as out:
        shown = on_terminal(many, *words, stdout=out.fileno())
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[K", shown) if " running " in line]
    assert drawn
    assert max(map(len, drawn)) == 39, "one that wraps could not be taken away again"
    with (many.folder / "out").open("wb") as out:
        shown = on_terminal(many, *words, "--json", stdout=out.fileno())
    assert "0/2 hosts" in shown, "what goes into a file is not seen to come"
    assert "0/2 hosts" not in on_terminal(many, *words, "--json")
    for plain in ("", "dumb"):
        assert "\x1b" not in on_terminal(many, *words, TERM=plain)
    assert "\x1b[3" not in on_terminal(many, *words, NO_COLOR="1")


def test_a_passphrase_is_asked_for_once_for_all_hosts(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    key = many.folder / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "open it", "-f", key], check=True)
    with (many.server.folder / "authorized_keys").open("a") as allowed:
        allowed.write(key.with_suffix(".pub").read_text())
    words = ["--identity", key, *everywhere(many, many.targets), many.script("echo done\n")]
    shown = on_terminal(many, "run", *words, answer=b"open it\n")
    assert shown.count("Passphrase for") == 1, shown
    assert "SUCCESS: 3 succeeded" in shown


def test_many_hosts_need_more_open_files_than_a_login_allows(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(20)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))

    words = ["--execution-id", "many", *everywhere(many, many.targets), many.script("sleep 1\n")]
    done = many.cronium("run", "--detach", *words, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    done = many.cronium("wait", "many", preexec_fn=few)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["run", "attach", "exec"])
def test_a_reader_that_takes_nothing_keeps_nobody_from_leaving(hosts: Callable[[int], ManyHosts], command: str) -> None:
    many = hosts(2)
    flood = f"echo x >> {many.folder}/up; yes | head -c 3000000; sleep 1000"
    words: list[object] = ["--execution-id", "flood", *everywhere(many, many.targets), many.script(f"{flood}\n")]
    if command == "attach":
        assert many.cronium("run", "--detach", *words).returncode == 0
        words = ["flood"]
    elif command == "exec":
        words = ["--timeout", "0", *everywhere(many, many.targets), "--", flood]
    ours, theirs = os.pipe()
    is_asked_twice = command == "run"
    stderr = subprocess.PIPE if is_asked_twice else subprocess.DEVNULL
    with many.start_cronium(command, *words, stdout=theirs, stderr=stderr) as process:
        os.close(theirs)
        wait_until(lambda: (many.folder / "up").exists() and (many.folder / "up").read_text() == "x\nx\n", "both")
        wait_until(lambda: _is_full(ours), "the pipe to be full")
        try:
            process.send_signal(signal.SIGINT)
            if is_asked_twice:
                assert process.stderr is not None
                while b"again" not in (line := process.stderr.readline()):
                    assert line
                process.send_signal(signal.SIGINT)
            assert process.wait(60) in (130, 255)
        finally:
            process.kill()
    os.close(ours)
    if command != "exec":
        many.cronium("cancel", "flood")


def _is_full(pipe: int) -> bool:
    waiting = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder) > 60_000
