"""A controller of this or another version that works when it is told to: paired_controller.py CHECKOUT BINARY HOSTS.

    standard input    ready | job | cold | warm      one a line
    standard output   [wall, cpu]                    seconds, for each

`job` is a no-op on a host with a warm agent; `cold` one line of output on HOSTS hosts by a new controller, `warm` the
same by one that is connected.
"""

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

CHECKOUT, BINARY, COUNT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.path.insert(0, str(CHECKOUT / "tests"))

try:
    from cronium_controller.access import Access
except ImportError:  # 0.1.0
    from cronium_controller.connection import Access  # type: ignore[attr-defined]
from cronium_controller.dispatch import Controller  # noqa: E402
from cronium_controller.hosts import Host  # noqa: E402
from cronium_controller.job import Job  # noqa: E402
from cronium_controller.payloads import load  # noqa: E402
from cronium_controller.runners import Runners  # noqa: E402
from cronium_controller.store import Store  # noqa: E402
from cronium_runner.wire.results import Outcome  # noqa: E402
from many_hosts import ManyHosts  # noqa: E402


async def serve(folder: Path, servers: ManyHosts) -> None:
    identity = str(servers.server.identity)
    hosts = []
    for target in servers.targets:
        address, _, port = target.partition(":")
        hosts.append(Host(address, address, int(port), None, identity))
    payloads = {}
    for name, script in (("no-op", ":\n"), ("line", "echo here\n")):
        (folder / name).mkdir()
        (folder / name / "manifest.yaml").write_text("version: v1\ninterpreter: sh\nentrypoint: script.sh\n")
        (folder / name / "script.sh").write_text(script)
        payloads[name] = load(folder / name)

    def controller(number: int) -> Controller:
        return Controller(
            store=Store(folder / f"state-{number}" / "controller.db"),
            access=Access(known_hosts=str(servers.server.known_hosts)),
            runners=Runners(BINARY, root=str(folder / "runner")),
        )

    async def on_all(controller: Controller) -> None:
        async def taken(*_: object) -> None:
            """Output counts as shown."""

        job = Job(payloads["line"])
        async for result in controller.run_many(hosts, job, forks=50, output=taken, keep_connections=True):
            assert result.state is Outcome.SUCCEEDED, result

    async with controller(0) as warm:

        async def job() -> None:
            result = await (await warm.submit(hosts[0], Job(payloads["no-op"]))).result()
            assert result.state is Outcome.SUCCEEDED, result

        async def cold() -> None:
            async with controller(1) as fresh:
                await on_all(fresh)

        async def ready() -> None:
            await on_all(warm)
            await job()

        works: dict[str, Callable[[], Awaitable[Any]]] = {
            "ready": ready, "job": job, "cold": cold, "warm": lambda: on_all(warm)
        }  # fmt: skip
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            wall, cpu = time.perf_counter(), time.process_time()
            await works[line]()
            print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers as well
    folder = Path(tempfile.mkdtemp(prefix="cronium-bench-"))
    try:
        (folder / "servers").mkdir()
        with ManyHosts(folder / "servers", Path(BINARY), folder / "root", COUNT) as servers:
            asyncio.run(serve(folder, servers))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
