"""An id starts once, whoever submits it, as often and from wherever; another payload under it is refused."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_controller.errors import ControllerError, RefusedError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.store import Store
from remote_host import RemoteHost, collect

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


SUBMIT_TWENTY_TIMES = """
import asyncio, os, sys
from cronium_controller.access import Access
from cronium_controller.dispatch import Controller
from cronium_controller.job import Job
from cronium_controller.hosts import parse_host
from cronium_controller.payloads import load

async def submit():
    async with Controller(access=Access(known_hosts=os.environ["CRONIUM_KNOWN_HOSTS"])) as controller:
        host = parse_host(sys.argv[1], identity=sys.argv[2])
        execution = await controller.submit(host, Job(load(sys.argv[3]), execution_id="one"))
        printed = b""
        async for piece in execution.pieces():
            printed += piece.data
        result = await execution.result()
        return (execution.was_started, printed, result.exit_code) in [(s, b"hello\\n", 4) for s in (True, False)]

children = []
for _ in range(20):  # processes of their own, without twenty times the imports
    pid = os.fork()
    if pid == 0:
        os._exit(0 if asyncio.run(submit()) else 1)
    children.append(pid)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""


def test_twenty_processes_submit_one_id_and_it_starts_once(fresh: RemoteHost, tmp_path: Path) -> None:
    script = fresh.script(f"echo started >> {tmp_path / 'starts'}; echo hello; sleep 0.5; exit 4")
    fresh.cronium("deploy", "--host", fresh.server.target)
    words = [fresh.server.target, str(fresh.server.identity), str(script)]
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT_TWENTY_TIMES, *words],
        env=fresh.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "starts").read_text() == "started\n"
    again = fresh.run("--execution-id", "one", script)
    assert (again.returncode, again.stdout) == (4, b"hello\n")
    assert (tmp_path / "starts").read_text() == "started\n"


async def test_the_same_id_with_something_else_is_refused(shared: RemoteHost, tmp_path: Path) -> None:
    async with shared.controller() as controller:
        script = shared.script(f"echo started >> {tmp_path / 'starts'}")
        first = await controller.submit(shared.host, Job(load(script), execution_id="same"))
        assert first.was_started
        await first.result()
        for job in (
            Job(load(shared.script("echo other", "other.sh")), execution_id="same"),
            Job(load(script), input=None, execution_id="same"),
            Job(load(script), input={"a": 1}, execution_id="same"),
        ):
            with pytest.raises(RefusedError) as refused:
                await controller.submit(shared.host, job)
            assert refused.value.code == "execution.id_conflict"
        record = controller.store.find("same")
        assert record is not None
        assert record.state == "succeeded", "a refusal says nothing about the first one"
        again = await controller.submit(shared.host, Job(load(script), execution_id="same"))
        assert again.was_started is False
        assert (await again.result()).exit_code == 0
    assert (tmp_path / "starts").read_text() == "started\n"


async def test_a_rejected_id_may_be_used_again(shared: RemoteHost) -> None:
    async with shared.controller() as controller:
        bad = Job(load(shared.script("#!/no/such/interpreter\n", "bad")), execution_id="retry")
        assert (await (await controller.submit(shared.host, bad)).result()).state == "rejected"
        good = Job(load(shared.script("echo fine")), execution_id="retry")
        execution = await controller.submit(shared.host, good)
        assert await collect(execution) == {"stdout": b"fine\n", "stderr": b""}


async def test_an_execution_is_written_down_before_it_is_sent(shared: RemoteHost) -> None:
    """When the database can't be written, nothing has been sent."""
    async with shared.controller() as controller:
        await (await controller.submit(shared.host, Job(load(shared.script("true"))))).result()
        sent = (await controller.reachable.reach(shared.host)).agent.frames_sent
        controller.store.database.write("PRAGMA query_only = 1")
        with pytest.raises(ControllerError) as refused:
            await controller.submit(shared.host, Job(load(shared.script("true")), execution_id="unwritten"))
        assert refused.value.code == "store.unusable"
        assert (await controller.reachable.reach(shared.host)).agent.frames_sent == sent
        controller.store.database.write("PRAGMA query_only = 0")
    assert "unwritten" not in shared.executions()


async def test_what_is_too_large_or_no_json_is_refused_before_it_is_written_down(shared: RemoteHost) -> None:
    payload = load(shared.script("true"))
    async with shared.controller() as controller:
        for number, unsendable in enumerate(["x" * 17_000_000, {1, 2}, b"bytes", float("nan"), {"a": object()}]):
            with pytest.raises(ControllerError) as refused:
                await controller.submit(shared.host, Job(payload, input=unsendable, execution_id=f"unsent-{number}"))
            assert refused.value.code == "input.invalid"
            assert len(refused.value.message) < 500
            assert controller.store.find(f"unsent-{number}") is None


async def test_controllers_of_two_operators_share_the_host_s_word(shared: RemoteHost, tmp_path: Path) -> None:
    """Different databases: only the host can know that the id was used."""
    job = Job(load(shared.script("sleep 0.2; exit 3")), execution_id="shared-id")
    other_store = Store(tmp_path / "other" / "controller.db")
    async with shared.controller() as one, shared.controller(store=other_store) as other:
        executions = await asyncio.gather(one.submit(shared.host, job), other.submit(shared.host, job))
        assert sorted(bool(execution.was_started) for execution in executions) == [False, True]
        assert [(await execution.result()).exit_code for execution in executions] == [3, 3]
    other_store.close()
