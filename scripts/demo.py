"""The demonstration: a private SSH server, the runner deployed to it, and a chain of three jobs in three languages.

Each job's output is the next one's input. Everything is real: the server, the binary, the scripts in
examples/log-chain. Everything is made in one temporary folder and removed at the end.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

from cronium_controller.connection import Access  # noqa: E402
from cronium_controller.dispatch import Controller  # noqa: E402
from cronium_controller.errors import ControllerError  # noqa: E402
from cronium_controller.hosts import Host  # noqa: E402
from cronium_controller.install import Runners  # noqa: E402
from cronium_controller.job import Job  # noqa: E402
from cronium_controller.payloads import load  # noqa: E402
from cronium_controller.store import Store  # noqa: E402
from cronium_runner.wire.names import STDERR  # noqa: E402
from cronium_runner.wire.results import Outcome, Result  # noqa: E402
from openssh import OpenSSHServer, sshd_path  # noqa: E402

CHAIN = PROJECT / "examples" / "log-chain"
STEPS = (
    ("1-summarise", "bash", "reads 400 lines of an access log and counts"),
    ("2-decide", "python", "compares with the variable ERROR_LIMIT_PERCENT"),
    ("3-report", "node", "writes the report"),
)
COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOURED else text


def heading(text: str) -> None:
    print(f"\n{paint('▶', '36')} {paint(text, '1')}")


def row(name: str, value: object) -> None:
    print(f"  {paint(f'{name:<10}', '2')} {value}")


@contextmanager
def ssh_server(folder: Path) -> Iterator[tuple[Host, Path]]:
    """A host to run on: OpenSSH where it is installed, else asyncssh's own server, which is said."""
    environment = {"CRONIUM_STATE_DIR": str(folder / "host-state"), "HOME": str(folder)}
    if sshd_path() is not None:
        with OpenSSHServer(folder / "sshd", environment=environment) as server:
            row("server", f"OpenSSH on {server.target}, throw-away keys")
            yield Host("demo-host", "127.0.0.1", server.port, None, str(server.identity)), server.known_hosts
        return
    from asyncssh_server import serve

    with serve(folder / "ssh", environment) as (port, identity):
        row("server", f"asyncssh's own on 127.0.0.1:{port}, because OpenSSH's sshd is not installed")
        yield Host("demo-host", "127.0.0.1", port, None, str(identity)), folder / "known_hosts"


async def run_step(controller: Controller, host: Host, name: str, given: Any) -> Result:
    """Submits one job and shows its output as it comes."""
    more: dict[str, Any] = {} if given is None else {"input": given}
    job = Job(load(CHAIN / name), variables={"ERROR_LIMIT_PERCENT": 5}, event={"trigger": "demo"}, **more)
    execution = await controller.submit(host, job)
    row("execution", execution.id)
    async for piece in execution.pieces():
        bar = paint("┃" if piece.stream == STDERR else "│", "31" if piece.stream == STDERR else "32")
        for line in piece.data.decode("utf-8", "replace").splitlines():
            print(f"  {bar} {line}")
    result = await execution.result()
    if result.state is not Outcome.SUCCEEDED:
        row("failed", f"{result.state}: {result.error_message or f'exit {result.exit_code}'}")
        return result
    if result.variables:
        row("variables", json.dumps(result.variables))
    if result.condition is not None:
        row("condition", str(result.condition).lower())
    row("took", f"{result.duration_ms:.0f} ms in the script")
    return result


async def demonstrate(host: Host, known_hosts: Path, binary: str, folder: Path) -> int:
    access = Access(known_hosts=str(known_hosts))
    runners = Runners(binary, root=str(folder / "host-runner"))
    store = Store(folder / "controller" / "controller.db")
    async with Controller(store=store, access=access, runners=runners) as controller:
        heading("Put the runner on the host")
        began = time.perf_counter()
        deployment = await controller.deploy(host)
        row("uploaded", f"{deployment.uploaded_bytes / 1e6:.1f} MB by {deployment.method}, digest verified there")
        row("took", f"{time.perf_counter() - began:.2f} s")

        given: Any = None
        last_input: Any = None
        result: Result | None = None
        for name, language, purpose in STEPS:
            heading(f"{name} ({language}): {purpose}")
            result = await run_step(controller, host, name, given)
            if result.state is not Outcome.SUCCEEDED:
                return 1
            last_input, given = given, result.output

        heading("The last job once more, under the same id: it must not start again")
        assert result is not None
        job = Job(load(CHAIN / STEPS[-1][0]), input=last_input, execution_id=result.execution_id)
        again = await controller.submit(host, job)
        recorded = await again.result()
        row("started", "yes, which is wrong" if again.was_started else "no")
        row("recorded", f"{recorded.state}, finished at {recorded.finished_at}")
        if again.was_started:
            return 1

        heading("Warm jobs over the open connection")
        payload = load(PROJECT / "examples" / "hello.sh")
        times = []
        for _ in range(20):
            began = time.perf_counter()
            done = await (await controller.submit(host, Job(payload))).result()
            times.append(time.perf_counter() - began)
            assert done.state is Outcome.SUCCEEDED
        row("median", f"{sorted(times)[10] * 1000:.1f} ms a job, claim and result on disk included")

    heading("Final report")
    print(json.dumps(given, indent=2, ensure_ascii=False))
    store.close()
    return 0


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="cronium-demo-"))
    try:
        heading("A host to run on")
        with ssh_server(folder) as (host, known_hosts):
            return asyncio.run(demonstrate(host, known_hosts, sys.argv[1], folder))
    except ControllerError as error:
        print(f"demo: {error.message} [{error.code}]", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
