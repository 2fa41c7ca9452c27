"""The job by our Python API: cronium_job.py HOSTS PORT KEY KNOWN_HOSTS FORKS TIMES SCRIPT BINARY ROOT.

With TIMES above 1 connections are kept, and one JSON object tells what the last time took.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from cronium_controller.access import Access
from cronium_controller.dispatch import Controller
from cronium_controller.execution import Piece
from cronium_controller.hosts import Host
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners


async def main() -> None:
    names, port, key, known_hosts, forks, times, script, binary, root = sys.argv[1:]
    hosts = [Host(name, name, int(port), None, key) for name in Path(names).read_text().split()]
    async with Controller(access=Access(known_hosts=known_hosts), runners=Runners(binary, root=root)) as controller:
        job = Job(load(Path(script)))
        for turn in range(int(times)):
            is_last = turn == int(times) - 1

            async def show(host: Host, piece: Piece, is_last: bool = is_last) -> None:
                if is_last:
                    sys.stdout.write(f"{host.name}: {piece.data.decode()}")

            began, cpu = time.monotonic(), time.process_time()
            many = controller.run_many(hosts, job, forks=int(forks), output=show, keep_connections=int(times) > 1)
            async for result in many:
                if result.error_message:
                    print(result.host, result.error_code, result.error_message, file=sys.stderr)
        if int(times) > 1:
            print(json.dumps({"wall": time.monotonic() - began, "cpu": time.process_time() - cpu}))
        if many.tally.failed:
            sys.exit(1)


asyncio.run(main())
