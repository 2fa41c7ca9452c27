"""Every host of a run is recorded with its state, so that later commands say of it what the screen said."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cronium_controller import fanout
from cronium_controller.runs import Runs
from many_hosts import ManyHosts
from runner_process import wait_until


@pytest.fixture
def hosts(tmp_path: Path, binary: Path, install_root: Path) -> Iterator[Callable[[int], ManyHosts]]:
    """`hosts(3)`: so many that answer."""
    with ExitStack() as running:
        yield lambda count: running.enter_context(ManyHosts(tmp_path / "hosts", binary, install_root, count))


def inventory(many: ManyHosts, rows: dict[str, str]) -> Path:
    """A hosts file with these names and addresses, and a row that can't be read."""
    file = many.folder / "hosts.yaml"
    lines = [f"  {name}: {{host: {target}, groups: all_of_them}}\n" for name, target in rows.items()]
    file.write_text(f"hosts:\n{''.join(lines)}  odd: {{host: odd, port: 99999, groups: all_of_them}}\n")
    return file


def told(many: ManyHosts, *words: object) -> tuple[dict[str, str], int, dict[str, Any]]:
    """State by host, exit status and summary of a command with --json."""
    done = many.cronium(*words, "--json")
    *results, summary = map(json.loads, done.stdout.splitlines())
    return {result["host"]: (result.get("result") or result)["state"] for result in results}, done.returncode, summary


def test_later_commands_agree_with_the_run(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    many.change_keys(many.targets[2:])
    rows = dict(zip(("web01", "web02", "web03", "gone"), [*many.targets, *many.refusing(1)], strict=True))
    script = many.script("test $CRONIUM_JOB_ID = fail && exit 3; exit 0\n")
    words = ["run", "--hosts", inventory(many, rows), "--on", "all_of_them", "--execution-id", "night", script]
    states, status, summary = told(many, *words)
    expected = {
        "web01": "succeeded", "web02": "succeeded", "web03": "refused", "gone": "unreachable", "odd": "malformed"
    }  # fmt: skip
    assert (states, status, summary["verdict"]) == (expected, 103, "PARTIAL SUCCESS")
    for command in ("wait", "status", "attach"):
        again, status, summary = told(many, command, "night")
        assert (command, again, status, summary["verdict"]) == (command, expected, 103, "PARTIAL SUCCESS")
        assert (summary["executionId"], summary["hosts"]) == ("night", 5)
    shown = many.cronium("wait", "night")
    assert shown.returncode == 103
    assert b"2 succeeded, 3 failed of 5 executions" in shown.stderr
    printed = many.cronium("status", "night")
    assert b"PARTIAL SUCCESS: 2 succeeded, 3 failed of 5 hosts\n" in printed.stderr
    assert b"on gone: unreachable" in printed.stdout
    assert many.cronium("logs", "night").returncode == 103
    assert b": unreachable\n" in many.cronium("cancel", "night").stderr


def test_a_detached_run_remembers_where_it_failed(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(2)
    rows = {"web01": many.targets[0], "web02": many.targets[1], "gone": many.refusing(1)[0]}
    words = ["--hosts", inventory(many, rows), "--on", "all_of_them", "--execution-id", "later"]
    assert many.cronium("run", "--detach", *words, many.script("exit 0\n")).returncode == 102
    states, status, _ = told(many, "wait", "later")
    expected = {"web01": "succeeded", "web02": "succeeded", "gone": "unreachable", "odd": "malformed"}
    assert (states, status) == (expected, 102)


def test_hosts_that_were_not_begun_are_skipped(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(3)
    words = ["--serial", "1", "--stop-on-failure", "--execution-id", "rolling"]
    everywhere = [word for target in many.targets for word in ("--host", target)]
    states, status, _ = told(many, "run", *words, *everywhere, many.script("exit 9\n"))
    expected = dict(zip(many.targets, ("failed", "skipped", "skipped"), strict=True))
    assert (states, status) == (expected, 9)
    for command in ("wait", "status"):
        assert told(many, command, "rolling")[:2] == (expected, 9), command


def test_an_interrupted_run_keeps_its_exit_status(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(1)
    silent = many.hanging(2)
    words = [word for target in silent for word in ("--host", target)]
    script = many.script("exit 0\n")
    with many.start_cronium("run", "--execution-id", "cut", *words, script, stderr=subprocess.PIPE) as process:
        wait_until(lambda: sum(many.count_waiting()), "a connection")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    states, status, summary = told(many, "wait", "cut")
    assert (states, status, summary["verdict"]) == (dict.fromkeys(silent, "skipped"), 130, "FAILED")


def test_wait_follows_a_run_that_is_killed(hosts: Callable[[int], ManyHosts], tmp_path: Path) -> None:
    """While the process of the run lives, a host that waits for its turn is waited for; then it is skipped."""
    many = hosts(3)
    everywhere = [word for target in many.targets for word in ("--host", target)]
    gate = tmp_path / "gate"
    script = many.script(f"echo up; until test -e {gate}; do sleep 0.05; done\n")
    words = ["run", "--execution-id", "dies", "--serial", "1", *everywhere, script]
    with many.start_cronium(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        many.wait_output(fanout.id_on("dies", many.targets[0]), b"up")
        assert Runs(many.store()).has_owner("dies")
        standing = told(many, "status", "dies")
        assert (sorted(standing[0].values()), standing[1]) == (["running", "waiting", "waiting"], 0)
        assert (standing[2]["running"], standing[2]["failed"]) == (3, 0)
        assert b"RUNNING: 3 under way of 3 hosts" in many.cronium("status", "dies").stderr
        with many.start_cronium("wait", "--json", "dies", stdout=subprocess.PIPE) as waiting:
            running.kill()
            running.wait()
            gate.touch()
            stdout, _ = waiting.communicate(timeout=120)
    results = [json.loads(line) for line in stdout.splitlines()]
    states = {result["host"]: result["state"] for result in results[:-1]}
    assert states == dict(zip(many.targets, ("succeeded", "skipped", "skipped"), strict=True))
    assert waiting.returncode == 102
    assert told(many, "wait", "dies")[:2] == (states, 102)


def test_one_host_that_is_not_reached_is_recorded(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(1)
    many.change_keys(many.targets)
    for target, state in ((many.refusing(1)[0], "unreachable"), (many.targets[0], "refused")):
        words = ["--json", "--execution-id", f"one-{state}", "--host", target, many.script("exit 0\n")]
        done = many.cronium("run", *words)
        assert (done.returncode, json.loads(done.stdout)["state"]) == (255, state)
        for command in ("wait", "attach", "status"):
            again = many.cronium(command, "--json", f"one-{state}")
            assert (command, again.returncode, json.loads(again.stdout)["state"]) == (command, 255, state)
        assert many.cronium("logs", f"one-{state}").returncode == 255
    left = [path.name for path in many.remembered.glob("runs/*")]
    assert left == []


def test_an_id_that_is_used_again_has_its_last_word(hosts: Callable[[int], ManyHosts]) -> None:
    many = hosts(1)
    script = many.script("exit 4\n")
    target = many.targets[0]
    many.server.stop()
    assert many.cronium("run", "--execution-id", "twice", "--host", target, script).returncode == 255
    many.server.start()
    assert many.cronium("run", "--execution-id", "twice", "--host", target, script).returncode == 4
    for command in ("wait", "status"):
        done = many.cronium(command, "--json", "twice")
        assert (command, done.returncode) == (command, 4)
    many.server.stop()
    done = many.cronium("run", "--json", "--execution-id", "twice", "--host", target, script)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (255, "unknown"), "it may have started before"
    assert many.cronium("wait", "twice").returncode == 4, "what is known is not asked for"
    many.server.start()
