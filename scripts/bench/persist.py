"""What a later `cronium run` and `exec` cost within `persist`, against a fresh `ssh HOST true`. Prints medians, ratios.

All are whole processes on one machine, made in turn; which goes first changes from round to round. The host is an
OpenSSH server on the loopback interface. Counted: logins in the server's log, and commands that have loaded asyncssh.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from remote_host import RemoteHost  # noqa: E402

_NOTE_MODULES = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["NOTED"], "a").write(f"{'asyncssh' in sys.modules}\\n"))
"""
FRESH = "a fresh ssh"
LOGIN = "Accepted publickey"


def commands(remote: RemoteHost) -> dict[str, list[str]]:
    """What is compared, by name."""
    server = remote.server
    here = ["--connection", "openssh", "--persist", "600", "--host", server.target, "--identity", str(server.identity)]
    cronium = str(Path(sys.executable).with_name("cronium"))
    files = [f"UserKnownHostsFile={server.known_hosts}", "StrictHostKeyChecking=yes", "BatchMode=yes"]
    options = [word for option in (*files, "ControlPath=none") for word in ("-o", option)]
    return {
        FRESH: ["ssh", "-F", "none", *options, "-i", str(server.identity), "-p", str(server.port), "127.0.0.1", "true"],
        "cronium exec": [cronium, "exec", *here, "--", "true"],
        "cronium run": [cronium, "run", *here, str(remote.script("true"))],
    }


def seconds(words: list[str], environment: dict[str, str]) -> float:
    """Of one run."""
    began = time.perf_counter()
    subprocess.run(words, env=environment, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(remote: RemoteHost, folder: Path, rounds: int) -> None:
    """Compares, and ends the connection that was kept."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_NOTE_MODULES)
    noted = folder / "noted"
    environment = {**remote.environment, "PYTHONPATH": str(folder / "site"), "NOTED": str(noted)}
    compared = commands(remote)
    for name in ("cronium run", "cronium exec", FRESH):  # puts the runner there, and makes the connection
        seconds(compared[name], environment)
    noted.unlink()
    before = remote.server.count_in_log(LOGIN)
    found: dict[str, list[float]] = {name: [] for name in compared}
    for number in range(rounds):
        for name in sorted(compared, reverse=bool(number % 2)):
            found[name].append(seconds(compared[name], environment))
    ours = remote.server.count_in_log(LOGIN) - before - rounds
    loaded = noted.read_text().split()
    subprocess.run([compared["cronium run"][0], "hosts", "--disconnect"], env=environment, check=True, stdout=-3)
    print(f"{FRESH:<14} {statistics.median(found[FRESH]) * 1000:7.1f} ms")
    for name in ("cronium exec", "cronium run"):
        ratio = statistics.median(one / fresh for one, fresh in zip(found[name], found[FRESH], strict=True))
        print(f"{name:<14} {statistics.median(found[name]) * 1000:7.1f} ms  {ratio:5.3f} × {FRESH}")
    print(f"of {len(loaded)} commands: {ours} logins, {loaded.count('True')} have loaded asyncssh")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/persist", description="What later commands over a kept connection cost against a fresh ssh."
    )
    parser.add_argument("rounds", nargs="?", type=int, default=40, help="how many of each, in turn (default 40)")
    rounds = parser.parse_args().rounds
    os.environ.pop("SSH_AUTH_SOCK", None)
    print(f"{rounds} rounds, medians; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="cb", dir="/tmp") as name:
        folder = Path(name)
        with RemoteHost(folder / "remote", Path(os.environ["CRONIUM_RUNNER_BINARY"]), folder / "lib") as remote:
            remote.remembered = folder / "s"
            measure(remote, folder, rounds)


if __name__ == "__main__":
    main()
