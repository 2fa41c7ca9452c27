"""What starting costs: the binary, a helper, a whole job. Prints medians, and ratios of runs made in turn.

Single times on a shared machine mean little; a run of A right after a run of B, many times, says how they compare. Of
processes the CPU time is compared as well, which other work on the machine changes least.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

import asyncssh  # noqa: E402

from cronium_controller.access import Access  # noqa: E402
from cronium_controller.dispatch import Controller  # noqa: E402
from cronium_controller.hosts import Host  # noqa: E402
from cronium_controller.job import Job  # noqa: E402
from cronium_controller.payloads import load  # noqa: E402
from cronium_controller.runners import Runners  # noqa: E402
from cronium_controller.store import Store  # noqa: E402
from cronium_runner.wire import frames  # noqa: E402
from cronium_runner.wire.results import Outcome  # noqa: E402
from openssh import OpenSSHServer  # noqa: E402

HELPER_JOB = """
import os, statistics, time
def spawn(*words):
    began = time.perf_counter()
    os.waitpid(os.posix_spawnp(words[0], words, os.environ), 0)
    return time.perf_counter() - began
pairs = [(spawn("cronium.setCondition", "true"), spawn("/bin/true")) for _ in range(200)]
cronium.output({
    "helper": statistics.median(a for a, _ in pairs) * 1000,
    "true": statistics.median(b for _, b in pairs) * 1000,
    "ratio": statistics.median(a / b for a, b in pairs),
})
"""


def show(what: str, milliseconds: float, ratio: float, goal: float, against: str, cpu: str = "") -> None:
    verdict = "reached" if ratio <= goal else "short"
    print(f"{what:<52} {milliseconds:7.2f} ms  {ratio:6.2f} × {against:<26} goal ≤ {goal:g}  {verdict}{cpu}")


def run(words: list[str], environment: dict[str, str], sent: Path) -> tuple[float, float]:
    """Seconds that a process takes whose standard input is the file `sent`: by the clock, and of CPU."""
    files = [(os.POSIX_SPAWN_OPEN, 0, str(sent), os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.perf_counter()
    _, status, used = os.wait4(os.posix_spawn(words[0], words, environment, file_actions=files), 0)
    took = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return took, used.ru_utime + used.ru_stime


def compare(
    what: str,
    words: list[str],
    base: list[str],
    environment: dict[str, str],
    rounds: int,
    goal: float,
    sent: Path = Path(os.devnull),
) -> None:
    """Show median milliseconds of `words`, and the median ratios to `base` run right after."""
    run(words, environment, sent)
    pairs = [(run(words, environment, sent), run(base, environment, sent)) for _ in range(rounds)]
    took, cpu = zip(*((a[0] / b[0], a[1] / b[1]) for a, b in pairs), strict=True)
    milliseconds, spent = (statistics.median(a[kind] for a, _ in pairs) * 1000 for kind in (0, 1))
    shown = f"; CPU {spent:.1f} ms, {statistics.median(cpu):.2f} ×"
    show(what, milliseconds, statistics.median(took), goal, "python3 -I -S -c pass", shown)


def processes(binary: str, folder: Path, rounds: int) -> None:
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else folder
    state = Path(tempfile.mkdtemp(prefix="cronium-bench-", dir=memory))
    environment = {
        **os.environ,
        "CRONIUM_STATE_DIR": str(state / "state"),
        "CRONIUM_INSTALL_DIR": str(folder / "install"),
    }
    python = getattr(sys, "_base_executable", sys.executable)
    base = [python, "-I", "-S", "-c", "pass"]
    job = folder / "no-op"
    job.mkdir()
    (job / "manifest.yaml").write_text("version: v1\ninterpreter: sh\nentrypoint: script.sh\n")
    (job / "script.sh").write_text(":\n")
    payload = folder / "no-op.tar.gz"
    subprocess.run(["tar", "-czf", payload, "-C", job, "manifest.yaml", "script.sh"], check=True)
    try:
        compare("one-file `version`", [binary, "version"], base, environment, rounds, 1.6)
        (program,) = (folder / "install").glob("*/cronium-runner")
        installed = str(program)
        compare("installed `version`", [installed, "version"], base, environment, rounds, 1.5)
        compare("an agent's start, to HELLO", [installed, "agent"], base, environment, rounds, 4)
        ping = folder / "ping"
        ping.write_bytes(frames.encode(frames.Kind.PING, 0, b""))
        compare("an agent's start, ready for a job", [installed, "agent"], base, environment, rounds, 4, ping)
        job_command = [installed, "run", str(payload)]
        compare("installed `run` of a no-op payload (tmpfs)", job_command, base, environment, rounds, 6)
        script = folder / "helpers.py"
        script.write_text(HELPER_JOB)
        told = subprocess.run([installed, "run", script, "--json"], env=environment, capture_output=True, check=True)
        found = __import__("json").loads(told.stdout)["output"]
        show("helper call by the C client", found["helper"], found["ratio"], 1, "/bin/true")
    finally:
        shutil.rmtree(state, ignore_errors=True)


async def jobs(binary: str, folder: Path, state: Path, where: str, rounds: int) -> None:
    """A no-op job over a warm connection against an exec of `true` by ssh's ControlMaster, and by bare asyncssh."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {"CRONIUM_STATE_DIR": str(state), "HOME": str(home)}  # an empty home: no rc files to slow ssh down
    with OpenSSHServer(folder / f"sshd-{where}", environment=environment) as server:
        host = Host("bench", "127.0.0.1", server.port, None, str(server.identity))
        ssh = ["ssh", "-F", "none", "-p", str(server.port), "-i", str(server.identity), "-o", "ControlMaster=auto",
               "-o", f"ControlPath={folder}/cm-{where}", "-o", "ControlPersist=60",
               "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "StrictHostKeyChecking=accept-new",
               "-o", "LogLevel=ERROR", "127.0.0.1"]  # fmt: skip
        store = Store(folder / f"controller-{where}" / "controller.db")
        access = Access(known_hosts=str(server.known_hosts))
        runners = Runners(binary, root=str(folder / "runner"))
        async with Controller(store=store, access=access, runners=runners) as controller:
            payload = load(folder / "no-op")
            bare = await asyncssh.connect(
                "127.0.0.1", server.port, client_keys=[str(server.identity)], known_hosts=None, config=None
            )

            async def job() -> None:
                result = await (await controller.submit(host, Job(payload))).result()
                assert result.state is Outcome.SUCCEEDED, result

            async def control_master() -> None:
                await asyncio.to_thread(subprocess.run, [*ssh, "true"], check=True, stdin=subprocess.DEVNULL)

            async def bare_exec() -> None:
                await bare.run("true", check=True)

            async def timed(work: Callable[[], Awaitable[None]]) -> float:
                began = time.perf_counter()
                await work()
                return time.perf_counter() - began

            for work in (job, control_master, bare_exec):
                await timed(work)
            triples = [(await timed(job), await timed(control_master), await timed(bare_exec)) for _ in range(rounds)]
            milliseconds = statistics.median(a for a, _, _ in triples) * 1000
            show(
                f"no-op job, warm connection, state on {where}",
                milliseconds,
                statistics.median(a / b for a, b, _ in triples),
                1.5,
                "ssh ControlMaster `true`",
            )
            show(
                f"no-op job, warm connection, state on {where}",
                milliseconds,
                statistics.median(a / c for a, _, c in triples),
                0.9,
                "bare asyncssh `true`",
            )
            bare.close()
        store.close()
        subprocess.run([*ssh[:1], "-O", "exit", *ssh[1:]], stderr=subprocess.DEVNULL, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/startup", description="What starting costs, as paired ratios.")
    parser.add_argument("binary", help=argparse.SUPPRESS)
    parser.add_argument("rounds", nargs="?", type=int, default=40, help="how many pairs of each (default 40)")
    given = parser.parse_args()
    binary, rounds = given.binary, given.rounds
    folder = Path(tempfile.mkdtemp(prefix="cronium-bench-"))
    memory = Path(tempfile.mkdtemp(prefix="cronium-bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    print(f"{rounds} rounds, medians; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    try:
        processes(binary, folder, rounds)
        asyncio.run(jobs(binary, folder, memory / "state", "tmpfs", rounds))
        asyncio.run(jobs(binary, folder, folder / "state", "disk", rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)


if __name__ == "__main__":
    main()
