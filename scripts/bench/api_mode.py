"""Helper reads over a real SSH connection on the loopback interface: API mode beside bundled mode, each a real job.

Prints medians, 95th percentiles, reads a second of one script, and the ratio. A read is the whole of it: the shell
starts the compiled client, which asks the supervisor, which asks the platform through the tunnel.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.platform_store import PlatformStore
from remote_host import RemoteHost, collect

SCRIPT = """#!/usr/bin/env bash
for _ in $(seq "$1"); do
  began=$EPOCHREALTIME; cronium.getVariable RATE > /dev/null; ended=$EPOCHREALTIME
  echo $(( ${ended/./} - ${began/./} ))
done
"""
ROUNDS = 5
"""Bundled and API mode take turns, so that both meet the same weather."""


async def measure(host: RemoteHost, reads: int) -> dict[str, list[list[int]]]:
    """Microseconds of each read, by mode and round."""
    script = host.script(SCRIPT, "read.sh")
    found: dict[str, list[list[int]]] = {"bundled": [], "api": []}
    async with host.controller() as controller:
        for _ in range(ROUNDS):
            for mode, rounds in found.items():
                job = Job(load(script), args=(str(reads),), variables={"RATE": "0.2"}, mode=mode)
                execution = await controller.submit(host.host, job)
                printed = await collect(execution)
                assert (await execution.result()).exit_code == 0, printed
                rounds.append([int(line) for line in printed["stdout"].split()])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/api_mode")
    parser.add_argument("binary", type=Path)
    parser.add_argument("reads", type=int, nargs="?", default=200)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        where = Path(folder)
        with RemoteHost(where / "host", chosen.binary, where / "root") as host:
            PlatformStore(str(host.remembered / "controller.db")).close()
            found = asyncio.run(measure(host, chosen.reads))
    for mode, rounds in found.items():
        every = sorted(sample for one in rounds for sample in one)
        median, late = statistics.median(every) / 1000, every[len(every) * 95 // 100] / 1000
        rate = 1_000_000 * len(every) / sum(every)
        print(f"{mode:<8} median {median:5.2f} ms   95 % {late:5.2f} ms   {rate:5.0f} reads a second")
    ratios = [
        statistics.median(api) / statistics.median(bundled)
        for api, bundled in zip(found["api"], found["bundled"], strict=True)
    ]
    print(f"ratio of medians, api to bundled: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
