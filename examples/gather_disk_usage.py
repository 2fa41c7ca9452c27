#!/usr/bin/env python3
"""Gathers the disk usage of all hosts and prints one table, the fullest file system first.

    examples/gather_disk_usage.py deploy@web01 deploy@web02
    examples/gather_disk_usage.py --identity ~/.ssh/deploy --above 80 web01 web02:2222

The job is disk-usage.sh beside this file. Hosts that fail are listed below the table, and the exit status is that of
`cronium run`: 0 when all succeeded, 100 and the number of failures when some did.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from cronium_controller import Controller, ControllerError, Job, parse_host
from cronium_controller.payloads import load


async def gather(targets: list[str], identity: str | None, above: float) -> int:
    rows: list[tuple[float, str, str, float]] = []
    failures: list[str] = []
    async with Controller() as controller:
        job = Job(load(Path(__file__).with_name("disk-usage.sh")), timeout=60)
        many = controller.run_many([parse_host(target, identity=identity) for target in targets], job)
        async for result in many:
            if result.output is None:
                failures.append(f"{result.host}: {result.error_message or result.state}")
                continue
            for disk in result.output["disks"]:
                used = 100 * disk["used_kib"] / disk["kib"]
                if used >= above:
                    rows.append((used, str(result.host), disk["mount"], disk["kib"] / 1024**2))
    width = max([len(host) for _, host, _, _ in rows], default=4)
    print(f"{'HOST':{width}}   USED       SIZE  MOUNT")
    for used, host, mount, gib in sorted(rows, reverse=True):
        print(f"{host:{width}}  {used:4.0f}%  {gib:7.1f}GiB  {mount}")
    for failure in sorted(failures):
        print(failure, file=sys.stderr)
    return many.tally.exit_status


def main() -> int:
    parser = argparse.ArgumentParser(description="Disk usage of all hosts, the fullest first.")
    parser.add_argument("hosts", nargs="+", metavar="[USER@]HOST[:PORT]")
    parser.add_argument("--identity", metavar="KEY")
    parser.add_argument("--above", type=float, default=0, metavar="PERCENT", help="only those at least so full")
    given = parser.parse_args()
    try:
        return asyncio.run(gather(given.hosts, given.identity, given.above))
    except ControllerError as error:
        print(f"{error.message} [{error.code}]", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
