"""`run_as` through the controller: one connection, an agent for each account, a store that remembers whose it was."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounts import Account, throw_away_account
from cronium_controller.errors import ControllerError, RefusedError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from remote_host import RemoteHost, collect
from runner_process import command_line, wait_until

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.frozen,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make accounts"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd"),
]


@pytest.fixture(scope="module")
def target() -> Iterator[Account]:
    with throw_away_account() as account:
        yield account


def wait_output(target: Account, execution_id: str, text: bytes) -> None:
    def has_printed() -> bool:
        path = target.execution(execution_id) / "stdout"
        return path.exists() and text in path.read_bytes()

    wait_until(has_printed, f"{text!r} from {execution_id}")


def test_run_attach_status_logs_and_cancel_find_the_account_again(shared: RemoteHost, target: Account) -> None:
    done = shared.run("--run-as", target.name, "--execution-id", "as-1", shared.script("id -un; echo err >&2; exit 5"))
    assert (done.returncode, done.stdout, done.stderr) == (5, f"{target.name}\n".encode(), b"err\n")
    assert (target.execution("as-1").is_dir(), shared.execution("as-1").exists()) == (True, False)
    for words, status in ((["attach"], 5), (["status", "--json"], 5), (["logs", "--stream", "stdout"], 0)):
        again = shared.cronium(*words, "as-1")
        assert again.returncode == status, again.stderr
        assert target.name.encode() in again.stdout or words[0] == "status"
    assert (shared.cronium("cancel", "as-1")).returncode == 0
    taken = shared.run(
        "--detach", "--run-as", target.name, "--execution-id", "as-2", shared.script("echo on; sleep 99")
    )
    assert (taken.returncode, taken.stdout) == (0, b"as-2\n")
    wait_output(target, "as-2", b"on")
    assert json.loads(shared.cronium("status", "--json", "as-2").stdout)["state"] == "running"
    assert shared.cronium("cancel", "as-2").returncode == 0
    assert shared.cronium("attach", "as-2").returncode == 130
    target.wait_nothing_left()


def test_an_id_means_one_account_from_here(shared: RemoteHost, target: Account) -> None:
    """A claim is per host and account, so both could have it: what `attach ID` means must not depend on luck."""
    script = shared.script("id -un")
    assert shared.run("--run-as", target.name, "--execution-id", "whose", script).returncode == 0
    refused = shared.run_json("--execution-id", "whose", script)
    assert (refused["exit status"], refused["error"]["code"]) == (125, "execution.id_conflict")
    assert target.name in refused["error"]["message"]
    assert not shared.execution("whose").exists()
    other = shared.run("--execution-id", "whose-2", script)
    assert other.stdout == b"root\n"
    assert shared.run_json("--run-as", target.name, "--execution-id", "whose-2", script)["exit status"] == 125


async def test_accounts_share_a_connection_and_not_an_agent(shared: RemoteHost, target: Account) -> None:
    payload = load(shared.script("id -un; sleep 0.2"))
    async with shared.controller() as controller:
        own = await controller.submit(shared.host, Job(payload))
        other = await controller.submit(shared.host, Job(payload, run_as=target.name))
        third = await controller.submit(shared.host, Job(payload, run_as=target.name))
        printed = [(await collect(execution))["stdout"] for execution in (own, other, third)]
        assert printed == [b"root\n", f"{target.name}\n".encode(), f"{target.name}\n".encode()]
        assert controller.connections_opened == 1
        record = controller.store.find(other.id)
        assert record is not None
        assert (record.run_as, controller.store.find(own.id).run_as) == (target.name, None)  # type: ignore[union-attr]
        again = await controller.attach(other.id, shared.host)
        assert (await collect(again))["stdout"] == f"{target.name}\n".encode()


async def test_an_agent_that_dies_takes_no_other_with_it(shared: RemoteHost, target: Account) -> None:
    payload = load(shared.script("id -un"))
    async with shared.controller() as controller:
        first = await controller.submit(shared.host, Job(payload, run_as=target.name))
        await first.result()
        agents = [pid for pid in target.processes() if b"agent" in command_line(pid)]
        waiting = await controller.submit(shared.host, Job(load(shared.script("sleep 1; echo on", "wait.sh"))))
        for pid in agents:
            with contextlib.suppress(ProcessLookupError):  # the first execution's supervisor, which has just ended
                os.kill(pid, signal.SIGKILL)
        lost = (await controller.reachable.reach(shared.host, target.name)).agent
        while lost.lost is None:  # what is submitted before it is noticed is unknown, as on any lost channel
            await asyncio.sleep(0.01)
        again = await controller.submit(shared.host, Job(payload, run_as=target.name))
        assert (await collect(again))["stdout"] == f"{target.name}\n".encode()
        assert (await collect(waiting))["stdout"] == b"on\n"


def test_an_unknown_account_is_refused_and_nothing_is_recorded(shared: RemoteHost) -> None:
    result = shared.run_json("--run-as", "nonesuch-account", "--execution-id", "nobody", shared.script("true"))
    assert (result["exit status"], result["state"]) == (125, "rejected")
    assert result["error"]["code"] == "run_as.unknown_user"
    assert shared.store().find("nobody") is None


@pytest.mark.parametrize("name", ["-u", "a b", "a'b", "a\nb", "", "$(id)", "a;id", "!x"])
async def test_what_is_no_name_is_refused_before_anything_is_sent(shared: RemoteHost, name: str) -> None:
    async with shared.controller() as controller:
        with pytest.raises(ControllerError, match="not the name of an account"):
            await controller.submit(shared.host, Job(load(shared.script("true")), run_as=name))
        assert controller.connections_opened == 0


async def test_a_host_that_may_not_become_it_refuses(shared: RemoteHost, target: Account) -> None:
    """Here the target has no home: the reason is the target's runner's own, under its own code."""
    with throw_away_account() as homeless:
        shutil.rmtree(homeless.home)
        async with shared.controller() as controller:
            with pytest.raises(ControllerError, match=str(homeless.home)) as refused:
                await controller.submit(shared.host, Job(load(shared.script("true")), run_as=homeless.name))
    assert (refused.value.exit_status, isinstance(refused.value, RefusedError)) == (125, True)
    assert refused.value.code == "state.unusable"


def test_a_controller_that_is_killed_finds_it_again(shared: RemoteHost, target: Account) -> None:
    script = shared.script("echo one; sleep 2; echo two")
    words = ["run", "--host", shared.server.target, "--run-as", target.name, "--execution-id", "killed", script]
    process = shared.start_cronium(*words)
    wait_output(target, "killed", b"one")
    process.kill()
    process.wait()
    done = shared.cronium("attach", "killed")
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")
    assert shared.run("--run-as", target.name, "--execution-id", "killed", script).stdout == b"one\ntwo\n"
    target.wait_nothing_left()


def test_a_secret_is_in_no_argument_or_environment_on_the_host(shared: RemoteHost, target: Account) -> None:
    secret = f"geheim-{os.urandom(6).hex()}"
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for name in os.listdir("/proc"):
                try:
                    content = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
                except OSError:
                    continue
                if secret.encode() in content:
                    seen.append(content[:200])

    watcher = threading.Thread(target=watch)
    watcher.start()
    script = shared.script('s=$(cronium.getVariable S); echo "${#s}"; sleep 0.5')
    done = shared.run("--run-as", target.name, "--secret", "S=@-", script, input=secret.encode())
    stop.set()
    watcher.join()
    assert (done.stdout, seen) == (f"{len(secret)}\n".encode(), [])
