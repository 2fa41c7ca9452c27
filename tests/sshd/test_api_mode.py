"""API mode from end to end: `cronium`, a real server, the real runner, and the platform's data in between."""

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts import throw_away_account
from cronium_controller.dispatch import Controller
from cronium_controller.errors import TunnelError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.platform_store import PlatformStore
from cronium_runner.wire.results import Outcome
from kinds import BOTH
from remote_host import RemoteHost, collect
from runner_process import command_line, wait_until
from web_server import WebServer

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
NewHost = Callable[..., RemoteHost]


@pytest.fixture
def platform(shared: RemoteHost) -> Iterator[PlatformStore]:
    """What the platform knows, as an operator sees it: the database of the shared host's controller."""
    store = PlatformStore(str(shared.remembered / "live.db"))
    yield store
    store.close()


def operator_sets(platform: PlatformStore, name: str, value: Any) -> None:
    platform.set_variable(name, value, None, time.time(), actor="operator test", host="here")


def actions(platform: PlatformStore, execution: str) -> list[str]:
    """What the audit log tells of an execution, in order."""
    return [
        f"{entry.action} {entry.subject}" if entry.action == "variable.set" else entry.action
        for entry in platform.audit(100_000, execution)
    ]


@BOTH
def test_a_change_of_the_operator_is_seen_by_the_next_read(
    shared: RemoteHost, platform: PlatformStore, tmp_path: Path
) -> None:
    name = f"mood-{shared.connection}"
    operator_sets(platform, "MOOD", "calm")
    gate = tmp_path / "gate"
    script = shared.script(
        f"cronium.getVariable MOOD; while [ ! -e {gate} ]; do sleep 0.02; done; cronium.getVariable MOOD\n"
        "cronium.setVariable SEEN yes; cronium.output done true; cronium.setCondition true"
    )
    words = ["run", "--host", shared.server.target, "--mode", "api", "--json", "--execution-id", name, script]
    with shared.start_cronium(*words, stdout=-1) as running:
        shared.wait_output(name, b"calm\n")
        operator_sets(platform, "MOOD", "stormy")
        gate.touch()
        stdout, _ = running.communicate(timeout=60)
    result = json.loads(stdout)
    assert (running.returncode, result["mode"], result["undelivered"], result["fallback"]) == (0, "api", 0, None)
    assert result["stdout"]["text"] == "calm\nstormy\n"
    assert (result["output"], result["variables"], result["condition"]) == ({"done": "true"}, {"SEEN": "yes"}, True)
    assert platform.written(name) == ({"done": "true"}, True)
    assert actions(platform, name) == [
        "execution.registered",
        "token.issued",
        "variable.set SEEN",
        "output.set",
        "condition.set",
        "token.revoked",
    ]


def test_input_variables_event_and_secrets(shared: RemoteHost, platform: PlatformStore) -> None:
    script = shared.script(
        "cronium.input n; cronium.getVariable REGION; cronium.event name; cronium.getVariable KEY | wc -c"
    )
    result = shared.run_json(
        *("--mode", "api", "--execution-id", "handed", "--input", '{"n": 12345678901234567890}'),
        *("--var", "REGION=eu", "--event", '{"id": "7", "name": "Backup"}', "--secret", "KEY=@-", script),
        input=b"hidden-away",
    )
    assert result["stdout"]["text"].split() == ["12345678901234567890", "eu", "Backup", "12"]
    # Not read here: to close a file that SQLite has open in this process would release its locks.
    assert subprocess.run(["grep", "-rl", "hidden-away", shared.remembered], check=False).returncode == 1


async def test_two_jobs_on_two_hosts_see_each_others_writes(new_host: NewHost) -> None:
    one, two = new_host(), new_host()
    script = one.script(
        "cronium.setVariable FROM_$1 hello; while :; do\n"
        "cronium.getVariable FROM_$2 2>/dev/null && exit; sleep 0.02; done"
    )

    async def run(controller: Controller, host: RemoteHost, mine: str, theirs: str) -> dict[str, bytes]:
        job = Job(load(script), args=(mine, theirs), mode="api", execution_id=f"pair-{mine}")
        execution = await controller.submit(host.host, job)
        printed = await collect(execution)
        assert (await execution.result()).state is Outcome.SUCCEEDED, printed
        return printed

    async with one.controller() as controller:
        found = await asyncio.gather(run(controller, one, "A", "B"), run(controller, two, "B", "A"))
    assert [printed["stdout"] for printed in found] == [b"hello\n"] * 2


async def test_many_executions_over_one_tunnel(shared: RemoteHost, platform: PlatformStore) -> None:
    script = shared.script(
        "cronium.setVariable N_$CRONIUM_EXECUTION_ID $1; cronium.getVariable N_$CRONIUM_EXECUTION_ID"
    )
    async with shared.controller() as controller:
        jobs = [Job(load(script), args=(str(n),), mode="api", execution_id=f"many-{n}") for n in range(10)]
        executions = await asyncio.gather(*[controller.submit(shared.host, job) for job in jobs])
        printed = await asyncio.gather(*[collect(execution) for execution in executions])
        assert [each["stdout"] for each in printed] == [b"%d\n" % n for n in range(10)]
        assert {(await execution.result()).undelivered for execution in executions} == {0}
    assert [actions(platform, f"many-{n}")[-1] for n in range(10)] == ["token.revoked"] * 10


WRITER = """#!/usr/bin/env bash
for n in $(seq 40); do cronium.setVariable COUNT $n || exit 8; echo wrote $n; sleep 0.05; done
"""


def test_killed_controllers_cost_no_write(shared: RemoteHost, platform: PlatformStore) -> None:
    """One after the other: the one that runs it, then those that took over, each in the middle of it."""

    def count() -> int:
        return actions(platform, "orphan").count("variable.set COUNT")

    script = shared.script(WRITER, "writer.sh")
    words: list[object] = ["run", "--host", shared.server.target, "--mode", "api", "--execution-id", "orphan", script]
    for more in (3, 6, 9):
        wanted = count() + more
        with shared.start_cronium(*words, stdout=-3, stderr=-3) as running:
            wait_until(lambda wanted=wanted: count() >= wanted, "more writes")  # type: ignore[misc]
            running.send_signal(signal.SIGKILL)
        words = ["attach", "orphan"]
    done = shared.cronium("wait", "orphan", "--json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["state"], result["mode"], result["undelivered"]) == (0, "succeeded", "api", 0)
    written = [entry.sequence for entry in platform.audit(100_000, "orphan") if entry.action == "variable.set"]
    assert written == list(range(1, 41))
    found = platform.variable("COUNT", "default")
    assert found is not None
    assert found.value == "40"
    assert (actions(platform, "orphan").count("token.issued"), actions(platform, "orphan")[-1]) == (4, "token.revoked")


def test_what_was_not_delivered_is_by_the_next_contact(new_host: NewHost) -> None:
    host = new_host(environment={"CRONIUM_API_PATIENCE": "3"})
    platform = PlatformStore(str(host.remembered / "live.db"))
    words = ["run", "--host", host.server.target, "--mode", "api", "--execution-id", "later"]
    with host.start_cronium(*words, host.script(WRITER, "writer.sh"), stdout=-3) as running:
        wait_until(lambda: "variable.set COUNT" in actions(platform, "later"), "the first write")
        running.send_signal(signal.SIGKILL)
    assert host.wait_result("later")["undelivered"] > 0
    done = host.cronium("wait", "later", "--json")
    result = json.loads(done.stdout)
    assert (result["state"], result["undelivered"]) == ("succeeded", 0)
    assert actions(platform, "later").count("variable.set COUNT") == 40
    assert actions(platform, "later")[-1] == "token.revoked"
    platform.close()


async def test_a_host_that_forwards_nothing_starts_nothing(new_host: NewHost) -> None:
    host = new_host(options=["AllowStreamLocalForwarding no", "AllowTcpForwarding no"])
    script = host.script("echo ran")
    async with host.controller() as controller:
        with pytest.raises(TunnelError) as error:
            await controller.submit(host.host, Job(load(script), mode="api", execution_id="never"))
        assert error.value.code == "api.tunnel_refused"
        assert (host.executions(), controller.store.find("never")) == ([], None)
        preferred = await controller.submit(host.host, Job(load(script), mode="prefer-api", execution_id="anyway"))
        result = await preferred.result()
        assert (result.state, result.mode, result.fallback_code) == (Outcome.SUCCEEDED, "bundled", "api.tunnel_refused")
    done = host.run_json("--mode", "prefer-api", script)
    assert (done["mode"], done["fallback"]["code"]) == ("bundled", "api.tunnel_refused")
    assert b"warning: executed in bundled mode" in done["on stderr"]
    refused = host.run_json("--mode", "api", script)
    assert (refused["exit status"], refused["state"]) == (125, "rejected")
    assert (refused["error"]["code"], refused["mode"]) == ("api.tunnel_refused", "api")
    many = host.cronium(
        *("run", "--host", host.server.target, "--host", "127.0.0.1:1", "--mode", "api"), "--json", script
    )
    told = [json.loads(line) for line in many.stdout.splitlines()]
    assert [line["mode"] for line in told if "mode" in line] == ["api", "api"]
    later = host.cronium("wait", "anyway", "--json")
    assert json.loads(later.stdout)["fallback"]["code"] == "api.tunnel_refused"


def test_a_port_where_that_is_allowed(new_host: NewHost) -> None:
    host = new_host(options=["AllowStreamLocalForwarding no"])
    script = host.script("cronium.setVariable X 1 && cronium.getVariable X")
    result = host.run_json("--mode", "api", "--allow-tcp-tunnel", script)
    assert (result["mode"], result["stdout"]["text"]) == ("api", "1\n")


def test_a_script_that_is_to_see_the_api_asks_it_by_a_port(shared: RemoteHost) -> None:
    folder = shared.folder / "by-port"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\nentrypoint: s.sh\ninterpreter: bash\nexpose_api: true\n")
    (folder / "s.sh").write_text(
        f"cronium.setVariable X 1 && cronium.getVariable X\n{sys.executable} -c '\n"
        "import os, urllib.request\n"
        'path = "{CRONIUM_API_ENDPOINT}/executions/{CRONIUM_EXECUTION_ID}/input".format(**os.environ)\n'
        'headers = {"Authorization": "Bearer " + os.environ["CRONIUM_API_TOKEN"]}\n'
        "print(urllib.request.urlopen(urllib.request.Request(path, headers=headers)).read().decode())'\n"
    )
    result = shared.run_json("--mode", "api", "--allow-tcp-tunnel", "--input", "7", folder)
    assert result["stdout"]["text"] == '1\n{"success":true,"data":7}\n'
    assert b"every account there can connect to it" in result["on stderr"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("useradd") is None, reason="needs root, to make accounts")
def test_another_account_has_no_part_in_the_socket(shared: RemoteHost) -> None:
    script = shared.script("id -un; cronium.setVariable X 1 && cronium.getVariable X")
    with throw_away_account() as target:
        refused = shared.run_json("--mode", "api", "--run-as", target.name, script)
        assert (refused["exit status"], refused["error"]["code"]) == (125, "api.tunnel_account")
        result = shared.run_json("--mode", "api", "--allow-tcp-tunnel", "--run-as", target.name, script)
        assert (result["mode"], result["stdout"]["text"]) == ("api", f"{target.name}\n1\n")
        target.wait_nothing_left()


@BOTH
# Known: on a busy machine up to two sockets of a master's lost connection are closed by the garbage collector alone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_connection_that_is_lost_is_replaced_by_attaching_again(
    shared: RemoteHost, platform: PlatformStore
) -> None:
    name, go = f"cut-{shared.connection}", f"GO_{shared.connection}"
    script = shared.script(
        f"cronium.setVariable N 1; echo one; while ! cronium.getVariable {go} 2> /dev/null; do sleep 0.1; done"
    )
    async with shared.controller() as controller:
        execution = await controller.submit(shared.host, Job(load(script), mode="api", execution_id=name))
        async for piece in execution.pieces():
            assert piece.data == b"one\n"
            (await controller.reachable.reach(shared.host)).connection.abort()
        lost = await execution.result()
        assert (lost.state, lost.mode) == (Outcome.UNKNOWN, "api")
        again = await controller.attach(name, shared.host, offsets=(4, 0))
        operator_sets(platform, go, "now")
        assert (await collect(again))["stdout"] == b"now\n"
        result = await again.result()
        assert (result.state, result.undelivered, controller.connections_opened) == (Outcome.SUCCEEDED, 0, 2)
    assert actions(platform, name).count("token.issued") == 2
    assert actions(platform, name)[-1] == "token.revoked"
    gc.collect()  # here, where it is known, and not in a later test


def test_leaving_an_execution_behind_is_said(shared: RemoteHost, platform: PlatformStore) -> None:
    script = shared.script("sleep 0.3; cronium.setVariable LATE 1 && cronium.getVariable LATE")
    left = shared.run("--mode", "api", "--detach", "--execution-id", "left", script)
    assert (left.returncode, left.stdout) == (0, b"left\n")
    assert b"cronium wait left" in left.stderr
    result = json.loads(shared.cronium("wait", "left", "--json").stdout)
    assert (result["state"], result["undelivered"]) == ("succeeded", 0)
    assert "variable.set LATE" in actions(platform, "left")


def test_a_rejected_job_leaves_nothing_on_the_platform_and_its_id_free(
    shared: RemoteHost, platform: PlatformStore
) -> None:
    words = ["--mode", "api", "--execution-id", "again"]
    missing = shared.script("#!/no/such/interpreter\n", "missing")
    missing.chmod(0o755)
    rejected = shared.run_json(*words, "--input", "1", missing)
    assert (rejected["state"], rejected["mode"]) == ("rejected", "api"), rejected
    assert platform.find("again") is None
    result = shared.run_json(*words, "--input", "2", shared.script("cronium.input"))
    assert result["stdout"]["text"] == "2\n"


async def test_a_controller_that_closes_waits_for_what_the_platform_is_still_told(
    shared: RemoteHost, platform: PlatformStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody holds the execution any more, and the platform takes its time."""
    forget = PlatformStore.forget

    def forget_slowly(*given: Any, **named: Any) -> None:
        time.sleep(0.5)
        forget(*given, **named)

    monkeypatch.setattr(PlatformStore, "forget", forget_slowly)
    missing = shared.script("#!/no/such/interpreter\n", "missing-too")
    missing.chmod(0o755)
    async with shared.controller() as controller:
        job = Job(load(missing), mode="api", execution_id="told-late")
        assert (await (await controller.submit(shared.host, job)).result()).state is Outcome.REJECTED
    assert platform.find("told-late") is None


async def test_an_interrupt_while_the_platform_is_told_leaves_nothing_there(
    shared: RemoteHost, platform: PlatformStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, begun, done = PlatformStore.register, threading.Event(), threading.Event()

    def register_slowly(*given: Any, **named: Any) -> None:
        begun.set()
        time.sleep(0.5)
        register(*given, **named)
        done.set()

    monkeypatch.setattr(PlatformStore, "register", register_slowly)
    async with shared.controller() as controller:
        run = controller.run_many([shared.host], Job(load(shared.script("true")), mode="api", execution_id="untold"))
        following = asyncio.ensure_future(anext(aiter(run)))
        await asyncio.to_thread(begun.wait, 60)
        run.cancel()
        assert (await following).error_code == "fanout.stopped"
        record = controller.store.find("untold")
        assert record is not None
        assert record.state == "refused"
    assert done.wait(60)
    assert platform.find("untold") is None
    assert not shared.execution("untold").exists()


def test_the_token_is_nowhere_but_with_those_who_use_it(shared: RemoteHost, tmp_path: Path) -> None:
    kept = tmp_path / "token"
    folder = shared.folder / "asks"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\nentrypoint: s.sh\ninterpreter: bash\nexpose_api: true\n")
    (folder / "s.sh").write_text(
        f'printf %s "$CRONIUM_API_TOKEN" > {kept}; cronium.setVariable A 1; echo "it is $CRONIUM_API_TOKEN"\n'
        "while [ ! -e gate ]; do sleep 0.02; done\n"
    )
    words = ["run", "--host", shared.server.target, "--mode", "api", "-v", "--execution-id", "kept", folder]
    with shared.start_cronium(*words, stdout=-1, stderr=-1) as running:
        shared.wait_output("kept", b"it is ")
        token = kept.read_bytes()
        assert token.count(b".") == 2
        kept.unlink()
        assert not any(token in command_line(int(name)) for name in os.listdir("/proc") if name.isdigit())
        (shared.execution("kept") / "work" / "gate").touch()
        stdout, stderr = running.communicate(timeout=60)
    assert stdout == b"it is ***\n"
    assert token not in stderr
    for place in (shared.state, shared.remembered, shared.home, shared.folder):
        # Not read here: to close a file that SQLite has open in this process would release its locks.
        found = subprocess.run(["grep", "-rlF", "-f", "-", place], input=token, capture_output=True, check=False)
        assert (found.returncode, found.stdout) == (1, b""), place


def test_a_script_has_a_webhook_called(shared: RemoteHost, platform: PlatformStore, tmp_path: Path) -> None:
    with WebServer() as web:
        tools = tmp_path / "tools.toml"
        tools.write_text(f'[alerts]\ntype = "webhook"\nurl = "{web.url}/hook"\nheaders = {{ X-Key = "t0p-secret" }}\n')
        tools.chmod(0o600)
        script = shared.script(
            """answer=$(cronium.executeToolAction alerts send '{"text": "disk full"}') && echo "$answer"\n"""
            """cronium.executeToolAction pager send; echo "status $?" """
        )
        words = ["run", "--host", shared.server.target, "--mode", "api", "--json", "--execution-id", "tool", script]
        with shared.start_cronium(*words, stdout=-1, env={"CRONIUM_TOOLS": str(tools)}) as running:
            stdout, _ = running.communicate(timeout=60)
        result = json.loads(stdout)
        assert result["stdout"]["text"] == '{"status":200,"body":{"ok":true,"exact":1.10}}\nstatus 1\n'
        assert "no tool of this name is configured" in result["stderr"]["text"]
        [received] = web.received
        assert received.body["params"] == {"text": "disk full"}
        assert (received.body["executionId"], received.headers["x-key"]) == ("tool", "t0p-secret")
    told = [action for action in actions(platform, "tool") if action.startswith("tool")]
    assert told == ["tool.started", "tool.succeeded", "tool.unknown"]


def test_somebody_elses_service(shared: RemoteHost, tmp_path: Path) -> None:
    from api_process import Platform

    service = Platform(tmp_path)
    try:
        address = service.serve()
        token = service.token("foreign", input={"from": "elsewhere"})
        environment = {"CRONIUM_API_ENDPOINT": address, "CRONIUM_API_TOKEN": token}
        words = ["run", "--host", shared.server.target, "--mode", "api", "--execution-id", "foreign", "--json"]
        script = shared.script("cronium.input from; cronium.output k v")
        with shared.start_cronium(*words, script, env=environment, stdout=-1, stderr=-1) as running:
            stdout, stderr = running.communicate(timeout=60)
        result = json.loads(stdout)
        assert (result["mode"], result["stdout"]["text"]) == ("api", "elsewhere\n"), stderr
        assert [entry["action"] for entry in service.audit("foreign")][-1] == "output.set"
        for half in environment:
            with shared.start_cronium(*words, script, env={half: environment[half]}, stdout=-1, stderr=-1) as running:
                stdout, _ = running.communicate(timeout=60)
            assert json.loads(stdout)["error"]["code"] == "api.config"
    finally:
        service.stop()


def test_a_bundled_run_loads_nothing_of_it() -> None:
    program = (
        "import sys, cronium_controller.dispatch\n"
        "print([name for name in ('starlette', 'uvicorn', 'jwt', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
