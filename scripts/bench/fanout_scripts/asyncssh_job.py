"""The measure of all: the same job by a bare asyncssh script. asyncssh_job.py HOSTS PORT KEY KNOWN_HOSTS FORKS TIMES.

As quick as such a script can be: files are read once, and nothing is checked but what asyncssh checks. With TIMES
above 1 connections are kept, and one JSON object tells what the last time took.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import asyncssh

COMMAND = "echo fanout-bench-output"


async def main() -> None:
    names, port, key, known_hosts, forks, times = sys.argv[1:]
    hosts = Path(names).read_text().split()
    options = {
        "port": int(port),
        "client_keys": [asyncssh.read_private_key(key)],
        "known_hosts": asyncssh.read_known_hosts(known_hosts),
    }
    room = asyncio.Semaphore(int(forks))
    kept: dict[str, asyncssh.SSHClientConnection] = {}

    async def run(host: str) -> str:
        async with room:
            connection = kept.get(host) or await asyncssh.connect(host, **options)
            done = await connection.run(COMMAND, check=True)
            if int(times) > 1:
                kept[host] = connection
            else:
                connection.close()
                await connection.wait_closed()
            return f"{host}: {done.stdout}"

    for turn in range(int(times)):
        began, cpu = time.monotonic(), time.process_time()
        for finished in asyncio.as_completed(map(run, hosts)):
            line = await finished
            if turn == int(times) - 1:
                sys.stdout.write(line)
    if int(times) > 1:
        print(json.dumps({"wall": time.monotonic() - began, "cpu": time.process_time() - cpu}))
    for connection in kept.values():
        connection.close()


asyncio.run(main())
