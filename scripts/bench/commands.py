"""What a raw command costs, cold and warm, against bare asyncssh. Prints medians, and ratios of runs made in turn.

Both do the same in one process, over the loopback interface, to the same OpenSSH server: `true` with its output as
bytes, the host key checked against a file, one key offered. Cold is connecting, running, closing. Which of the two goes
first changes from pair to pair, so that neither profits from the other's warm caches; waste is collected in between.
"""

import argparse
import asyncio
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

import asyncssh  # noqa: E402

from cronium_controller.access import Access  # noqa: E402
from cronium_controller.client import SSHClient  # noqa: E402
from cronium_controller.hosts import SSHConfig  # noqa: E402
from openssh import OpenSSHServer  # noqa: E402

COLD_GOAL = 1.0
WARM_GOAL = 1.1
Work = Callable[[], Awaitable[float]]


async def pairs(ours: Work, bare: Work, rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, made in turn."""
    found = []
    for number in range(-2, rounds):
        gc.collect()
        if number % 2:
            pair = (await ours(), await bare())
        else:
            second = await bare()
            pair = (await ours(), second)
        if number >= 0:  # the first ones load modules
            found.append(pair)
    return found


def show(what: str, found: list[tuple[float, float]], goal: float) -> None:
    ratio = statistics.median(ours / bare for ours, bare in found)
    milliseconds = [statistics.median(each) * 1000 for each in zip(*found, strict=True)]
    verdict = "reached" if ratio <= goal else "short"
    print(
        f"{what:<44} {milliseconds[0]:7.2f} ms  {ratio:5.3f} × bare asyncssh ({milliseconds[1]:.2f} ms)"
        f"  goal ≤ {goal:g}  {verdict}"
    )


async def measure(folder: Path, rounds: int) -> None:
    home = folder / "home"
    home.mkdir()
    with OpenSSHServer(folder / "sshd", environment={"HOME": str(home)}, options=["MaxStartups 100"]) as server:
        config = SSHConfig("127.0.0.1", server.port, key_path=str(server.identity))
        access = Access(known_hosts=str(server.known_hosts))

        async def connected() -> asyncssh.SSHClientConnection:
            return await asyncssh.connect(
                "127.0.0.1", server.port, client_keys=[str(server.identity)], known_hosts=str(server.known_hosts)
            )

        async def cold_ours() -> float:
            client = SSHClient(config, access=access)
            began = time.perf_counter()
            result = await client.run_async("true")
            took = time.perf_counter() - began
            assert result.success, result
            await client.close()
            return took

        async def cold_bare() -> float:
            began = time.perf_counter()
            connection = await connected()
            done = await connection.run("true", encoding=None)
            took = time.perf_counter() - began
            assert done.exit_status == 0, done
            connection.close()
            await connection.wait_closed()
            return took

        async with SSHClient(config, access=access) as client:
            await client.run_async("true")  # records the host's key for both
            await client.run_async("true")  # and by now it is known which shell there is
            bare = await connected()

            async def warm_ours() -> float:
                began = time.perf_counter()
                assert (await client.run_async("true")).success
                return time.perf_counter() - began

            async def warm_bare() -> float:
                began = time.perf_counter()
                assert (await bare.run("true", encoding=None)).exit_status == 0
                return time.perf_counter() - began

            show("first command on a cold connection", await pairs(cold_ours, cold_bare, rounds), COLD_GOAL)
            show("command on a warm connection", await pairs(warm_ours, warm_bare, 3 * rounds), WARM_GOAL)
            bare.close()
            await bare.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/commands", description="What a raw command costs against bare asyncssh, as paired ratios."
    )
    parser.add_argument("rounds", nargs="?", type=int, default=60, help="how many cold pairs (default 60); 3 × warm")
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="cronium-bench-"))
    os.environ["HOME"] = str(folder)  # the account's own SSH configuration must not play a part
    os.environ["CRONIUM_CONTROLLER_STATE"] = str(folder / "state")
    os.environ.pop("SSH_AUTH_SOCK", None)
    print(f"{rounds} rounds, medians; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    try:
        asyncio.run(measure(folder, rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
