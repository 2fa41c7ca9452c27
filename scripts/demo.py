"""The demonstration: a private SSH server, the runner deployed to it, and a chain of three jobs in three languages.

Each job's output is the next one's input. With `--mode api` instead: one job that reads live data, and an
operator who changes it meanwhile. Everything is real: the server, the binary, the scripts in examples. Everything is
made in one temporary folder and removed at the end.
"""

import argparse
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

from cronium_controller.access import Access  # noqa: E402
from cronium_controller.dispatch import Controller  # noqa: E402
from cronium_controller.errors import ControllerError  # noqa: E402
from cronium_controller.hosts import Host  # noqa: E402
from cronium_controller.job import Job  # noqa: E402
from cronium_controller.payloads import load  # noqa: E402
from cronium_controller.runners import Runners  # noqa: E402
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


async def as_operator(folder: Path, *words: str) -> str:
    """`cronium WORDS` in a process of its own, on the demonstration's data; what it prints."""
    row("operator", paint("$ cronium " + " ".join(words), "1"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from cronium_controller.cli import main; main()", *words),
        env={**os.environ, "CRONIUM_CONTROLLER_STATE": str(folder / "controller")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    return printed.decode()


async def demonstrate_live(host: Host, known_hosts: Path, binary: str, folder: Path) -> int:
    access = Access(known_hosts=str(known_hosts))
    runners = Runners(binary, root=str(folder / "host-runner"))
    store = Store(folder / "controller" / "controller.db")
    async with Controller(store=store, access=access, runners=runners) as controller:
        heading("An operator sets a variable on the platform")
        await as_operator(folder, "api", "variables", "set", "RATE", "0.1")

        heading("live-rate.sh (bash): reads it, sleeps, reads it again")
        job = Job(load(PROJECT / "examples" / "live-rate.sh"), args=("2",), mode="api", execution_id="live-demo")
        execution = await controller.submit(host, job)
        row("execution", execution.id)
        printed = b""
        async for piece in execution.pieces():
            print("".join(f"  {paint('│', '32')} {line}\n" for line in piece.data.decode().splitlines()), end="")
            if b"after" not in printed + piece.data and b"before" in piece.data:
                await as_operator(folder, "api", "variables", "set", "RATE", "0.2")
            printed += piece.data
        result = await execution.result()
        await execution.wait_acknowledged()
        row("result", f"{result.state} in {result.mode} mode, {result.undelivered} writes undelivered")
        row("output", json.dumps(result.output))

        heading("The audit log: who did what to which execution, when, from where")
        print(await as_operator(folder, "api", "audit"), end="")
    store.close()
    return 0 if result.output == {"rate": "0.2"} and printed == b"before: 0.1\nafter:  0.2\n" else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Real jobs on a throw-away SSH host.")
    parser.add_argument("binary", help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("bundled", "api"), default="bundled")
    chosen = parser.parse_args()
    show = demonstrate if chosen.mode == "bundled" else demonstrate_live
    folder = Path(tempfile.mkdtemp(prefix="cronium-demo-"))
    try:
        heading("A host to run on")
        with ssh_server(folder) as (host, known_hosts):
            return asyncio.run(show(host, known_hosts, chosen.binary, folder))
    except ControllerError as error:
        print(f"demo: {error.message} [{error.code}]", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
