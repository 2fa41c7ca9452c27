"""One id submitted fifty times at once, over several connections: one start. By processes: tests/sshd/test_once.py."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.store import Store
from faults.figures import record
from remote_host import RemoteHost, collect

COMMAND = "scripts/test --faults tests/faults/test_submissions.py"
CONTROLLERS, EACH = 5, 10


@pytest.mark.sshd
@pytest.mark.frozen
async def test_fifty_submissions_at_once_start_it_once(fresh: RemoteHost, tmp_path: Path) -> None:
    """Five controllers that know nothing of each other, each with an agent of its own, ten submissions each."""
    fresh.cronium("deploy", "--host", fresh.server.target)
    script = fresh.script(f"echo started >> {tmp_path / 'starts'}; echo hello; sleep 0.5; exit 4")
    job = Job(load(script), execution_id="one")
    stores = [Store(tmp_path / str(number) / "controller.db") for number in range(CONTROLLERS)]
    async with contextlib.AsyncExitStack() as leaving:
        controllers = [await leaving.enter_async_context(fresh.controller(store=store)) for store in stores]
        submissions = [controller.submit(fresh.host, job) for controller in controllers for _ in range(EACH)]
        executions = await asyncio.gather(*submissions)
        started = sorted(bool(execution.was_started) for execution in executions)
        assert started == [False] * (CONTROLLERS * EACH - 1) + [True]
        printed = await asyncio.gather(*[collect(execution) for execution in executions])
        assert [each["stdout"] for each in printed] == [b"hello\n"] * (CONTROLLERS * EACH)
        assert {(await execution.result()).exit_code for execution in executions} == {4}
    for store in stores:
        store.close()
    assert (tmp_path / "starts").read_text() == "started\n"
    said = f"1 start; output and result {CONTROLLERS * EACH} times, over {CONTROLLERS} connections"
    record(f"{CONTROLLERS * EACH} submissions of one id at once", said, COMMAND)
