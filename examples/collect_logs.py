#!/usr/bin/env python3
"""Collects the ends of log files from all hosts, into one local file for each host.

    examples/collect_logs.py --into logs --file /var/log/syslog --lines 500 deploy@web01 deploy@web02

The job is collect-logs.sh beside this file. Its output is written as it comes and never held in memory. A file is named
HOST.log only when all of it has arrived; what a host that failed has sent is in HOST.log.part.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from cronium_controller import Controller, ControllerError, Host, Job, parse_host
from cronium_controller.execution import Piece
from cronium_controller.payloads import load
from cronium_runner.wire.results import Outcome


async def collect(hosts: list[Host], job: Job, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for host in hosts:
        (folder / f"{host.name}.log.part").write_bytes(b"")

    async def keep(host: Host, piece: Piece) -> None:
        with (folder / f"{host.name}.log.part").open("ab") as file:
            file.write(piece.data)

    async with Controller() as controller:
        many = controller.run_many(hosts, job, output=keep)
        async for result in many:
            part = folder / f"{result.host}.log.part"
            if result.state is Outcome.SUCCEEDED:
                done = part.rename(part.with_suffix(""))
                print(f"{done}: {done.stat().st_size} bytes")
            else:
                print(f"{result.host}: {result.error_message or result.state}", file=sys.stderr)
    return many.tally.exit_status


def main() -> int:
    parser = argparse.ArgumentParser(description="The ends of log files, into a local file for each host.")
    parser.add_argument("hosts", nargs="+", metavar="[USER@]HOST[:PORT]")
    parser.add_argument("--identity", metavar="KEY")
    parser.add_argument("--file", action="append", required=True, metavar="PATH", help="on the hosts; repeatable")
    parser.add_argument("--lines", type=int, default=1000, help="of each file")
    parser.add_argument("--into", type=Path, default=Path("logs"), metavar="FOLDER")
    given = parser.parse_args()
    try:
        payload = load(Path(__file__).with_name("collect-logs.sh"))
        job = Job(payload, args=given.file, variables={"LINES": given.lines}, timeout=300)
        hosts = [parse_host(target, identity=given.identity) for target in given.hosts]
        return asyncio.run(collect(hosts, job, given.into))
    except ControllerError as error:
        print(f"{error.message} [{error.code}]", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
