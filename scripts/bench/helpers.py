"""What a helper costs in bundled and in API mode: real jobs over a loopback SSH server, by `cronium run --mode`.

Each round is one job of each mode, in turn; a job measures its own helper calls with the C client, and the Python
library's. Prints medians over the rounds, and the ratio of the modes within a round: single times on a shared machine
mean little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from openssh import OpenSSHServer  # noqa: E402

READ_GOAL_MS = 5.0
RATE_GOAL = 200.0

JOB = """
import os, statistics, time
def timed(call, *words):
    began = time.perf_counter()
    call(*words)
    return time.perf_counter() - began
def spawn(*words):
    _, status = os.waitpid(os.posix_spawnp(words[0], words, os.environ, file_actions=NULL), 0)
    assert status == 0, words
def median(call, *words, count=300):
    return statistics.median(timed(call, *words) for _ in range(count)) * 1000
NULL = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
spawn("cronium.setVariable", "V", "value")
time.sleep(0.5)  # from here on it is read from the platform, and not from what waits for it
began = time.perf_counter()
for _ in range(500):
    spawn("cronium.getVariable", "V")
rate = 500 / (time.perf_counter() - began)
cronium.output({
    "mode": os.environ["CRONIUM_HELPER_MODE"],
    "read, C client": median(spawn, "cronium.getVariable", "V"),
    "write, C client": median(spawn, "cronium.setVariable", "W", "value"),
    "read, Python library": median(cronium.getVariable, "V"),
    "write, Python library": median(cronium.setVariable, "W", "value"),
    "/bin/true": median(spawn, "/bin/true"),
    "reads a second": rate,
})
"""


def measured(mode: str, target: list[str], script: Path, environment: dict[str, str]) -> dict[str, float]:
    """What one job of the mode has measured."""
    words = [sys.executable, "-c", "from cronium_controller.cli import main; main()", "run", *target]
    done = subprocess.run(
        [*words, "--json", "--mode", mode, str(script)],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    result = json.loads(done.stdout)
    if done.returncode != 0 or result["output"]["mode"] != mode or result["undelivered"]:
        raise SystemExit(f"the job of mode {mode} went wrong: {json.dumps(result)[:2000]}")
    return {name: value for name, value in result["output"].items() if name != "mode"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cronium-bench-") as name:
        folder = Path(name)
        script = folder / "measure.py"
        script.write_text(JOB)
        remote = {"CRONIUM_STATE_DIR": str(folder / "host-state"), "HOME": name}
        environment = {
            **os.environ,
            "CRONIUM_CONTROLLER_STATE": str(folder / "controller"),
            "CRONIUM_KNOWN_HOSTS": str(folder / "known_hosts"),
            "CRONIUM_RUNNER_BINARY": str(PROJECT / options.binary),
            "CRONIUM_RUNNER_ROOT": str(folder / "host-runner"),
        }
        with OpenSSHServer(folder / "sshd", environment=remote) as server:
            target = ["--host", server.target, "--identity", str(server.identity)]
            rounds = [
                {mode: measured(mode, target, script, environment) for mode in ("bundled", "api")}
                for _ in range(options.rounds)
            ]
    return show(rounds)


def show(rounds: list[dict[str, dict[str, float]]]) -> int:
    """Prints the table. Returns 1 when a goal is missed."""
    print(f"{'':<24} {'bundled':>10} {'api':>10} {'api / bundled':>14}")
    for what in rounds[0]["api"]:
        bundled = statistics.median(one["bundled"][what] for one in rounds)
        api = statistics.median(one["api"][what] for one in rounds)
        ratio = statistics.median(one["api"][what] / one["bundled"][what] for one in rounds)
        unit = "/s" if what.endswith("second") else "ms"
        print(f"{what:<24} {bundled:>8.2f} {unit} {api:>8.2f} {unit} {ratio:>12.2f} ×")
    read = statistics.median(one["api"]["read, C client"] for one in rounds)
    rate = statistics.median(one["api"]["reads a second"] for one in rounds)
    print(
        f"goals: a read of the C client ≤ {READ_GOAL_MS:g} ms: {'reached' if read <= READ_GOAL_MS else 'short'}; ",
        end="",
    )
    print(f"≥ {RATE_GOAL:g} reads a second from one script: {'reached' if rate >= RATE_GOAL else 'short'}")
    return int(read > READ_GOAL_MS or rate < RATE_GOAL)


if __name__ == "__main__":
    sys.exit(main())
