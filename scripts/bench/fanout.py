"""One job on many hosts, by us and by others: wall time, controller's CPU and memory, as ratios of runs made in turn.

The hosts are real OpenSSH servers on loopback addresses of this machine, so its cores do the hosts' work as well: the
wall time of a tool says less here than its CPU, which on a controller of its own is what bounds a fan-out.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from fanout_peers import OUTPUT, PEERS, TOOLS, Setting, Way, install, ways  # noqa: E402

from openssh import OpenSSHServer  # noqa: E402

HOSTS: Final = 200
ROUNDS: Final = 3
FORKS: Final = 50
"""Of each tool that lets us say; Ansible is tried with 50 and 100."""
SECONDS: Final = 600
"""For one run of a tool, which takes half a minute at worst."""
LEAVING_SECONDS: Final = 60
"""For sessions to end once their tool has; they take a moment."""
LEFT_OUT: Final = ("SSH_AUTH_SOCK", "PYTHONDONTWRITEBYTECODE")
"""An agent's keys would be tried first; and what is installed has its bytecode, whatever is set here."""
_ADDRESSES: Final = 15
"""Of one sshd: it listens on 16 at most, and one of them is 127.0.0.1."""
GOALS: Final = (
    ("cold, wall", "cronium", "asyncssh", "wall", 1.5),
    ("warm, wall", "cronium, warm", "asyncssh, warm", "wall", 1.0),
    ("cold, controller CPU", "cronium", "asyncssh", "cpu", 1.5),
    ("cold, memory", "cronium", "asyncssh", "memory", 2.0),
)
_FASTER_THAN_ANSIBLE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took: seconds, seconds, bytes; seconds of CPU on the side of the hosts."""

    wall: float
    cpu: float
    memory: float
    hosts_cpu: float


class FailedError(Exception):
    """A tool that did not do the job on every host."""


class Hosts:
    """`count` addresses of this machine on which OpenSSH answers, all on one port; each has a state directory."""

    def __init__(self, folder: Path, count: int) -> None:
        self.addresses = [f"127.0.{1 + number // 200}.{1 + number % 200}" for number in range(count)]
        home = folder / "home"
        home.mkdir()  # an empty home: no rc files of whoever runs this
        self.servers: list[OpenSSHServer] = []
        for start in range(0, count, _ADDRESSES):
            served = self.addresses[start : start + _ADDRESSES]
            beside = folder / f"sshd{start // _ADDRESSES}"
            beside.mkdir()
            if self.servers:
                for name in ("host_key", "host_key.pub", "id_ed25519", "id_ed25519.pub"):
                    shutil.copy(self.first.folder / name, beside / name)
            options = ["MaxStartups 2000", *(f"ListenAddress {address}" for address in served)]
            matches = [
                f'Match LocalAddress {address}\n  SetEnv "HOME={home}" "CRONIUM_STATE_DIR={folder / "state" / address}"'
                for address in served
            ]
            self.servers.append(OpenSSHServer(beside, options=options, matches=matches))
            self.servers[-1].port = self.first.port
        key = " ".join((self.first.folder / "host_key.pub").read_text().split()[:2])
        lines = [f"[{address}]:{self.port} {key}\n" for address in self.addresses]
        self.first.known_hosts.write_text("".join(lines))

    @property
    def first(self) -> OpenSSHServer:
        return self.servers[0]

    @property
    def port(self) -> int:
        return self.first.port

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """They answer."""
        with contextlib.ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            for address in self.addresses:
                with socket.create_connection((address, self.port), 10) as probe:
                    probe.recv(4)
            yield

    def wait_idle(self) -> None:
        """Until nobody is logged in any more: what the last tool left takes time to end, and is not the next one's."""
        until = time.monotonic() + LEAVING_SECONDS
        while any(self._sessions(server) for server in self.servers):
            if time.monotonic() > until:
                raise FailedError(f"there are sessions after {LEAVING_SECONDS} s")
            time.sleep(0.05)

    def _sessions(self, server: OpenSSHServer) -> str:
        assert server._process is not None
        pid = server._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()

    def cpu(self) -> float:
        """Seconds that sessions which have ended took, whatever they ran."""
        ticks = 0
        for server in self.servers:
            assert server._process is not None
            fields = Path(f"/proc/{server._process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")


def ssh_config(setting: Setting) -> str:
    """For tools that start OpenSSH's `ssh`."""
    return (
        f"Host *\n  Port {setting.port}\n  IdentityFile {setting.identity}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {setting.known_hosts}\n  StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n"
    )


def run(way: Way, setting: Setting, hosts: Hosts) -> Run:
    """Runs it once, and makes sure that every host has done the job."""
    way.prepare()
    report, output = setting.folder / "report.json", setting.folder / "output"
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    hosts.wait_idle()
    before = hosts.cpu()
    words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("measured.py")), str(report), str(output)]
    subprocess.run([*words, *way.words], env=environment | (way.environment or {}), check=True, timeout=SECONDS)
    hosts.wait_idle()
    told = json.loads(report.read_text())
    said = output.read_text(errors="replace")
    done = sum(line.rstrip().endswith(OUTPUT) for line in said.splitlines())
    if told["status"] != 0 or done < len(setting.hosts):
        last = " / ".join(said.strip().splitlines()[-3:])[:500]
        raise FailedError(f"exit {told['status']}, output of {done} of {len(setting.hosts)} hosts; it said: {last}")
    if way.is_warm:
        told |= json.loads(said.strip().splitlines()[-1])
    return Run(told["wall"], told["cpu"], told["memory"], hosts.cpu() - before)


def put_runner(setting: Setting, hosts: Hosts) -> None:
    """Has the runner put on one host, and with that on all: what is measured finds it there."""
    alone = replace(setting, hosts=setting.hosts[:1])
    alone.write_names()
    try:
        run(ways(alone, "cronium")[0], alone, hosts)
    finally:
        setting.write_names()


def measure(setting: Setting, hosts: Hosts, chosen: list[Way], rounds: int) -> dict[str, list[Run]]:
    """Everything in turn, so that what else this machine does touches all alike."""
    found: dict[str, list[Run]] = {way.name: [] for way in chosen}
    for _ in range(rounds):
        for way in chosen:
            if way.name not in found:
                continue
            try:
                found[way.name].append(run(way, setting, hosts))
            except (FailedError, subprocess.TimeoutExpired) as error:
                del found[way.name]
                print(f"{way.name}: left out: {error}", flush=True)
    return found


def ratio(found: dict[str, list[Run]], name: str, base: str, quantity: str) -> float | None:
    """The median, over the rounds, of one tool's figure through another's of the same round."""
    if name not in found or base not in found:
        return None
    pairs = zip(found[name], found[base], strict=True)
    return float(statistics.median(getattr(one, quantity) / getattr(other, quantity) for one, other in pairs))


def show(found: dict[str, list[Run]]) -> None:
    """The table: medians, and in × the ratios to bare asyncssh, cold or warm."""
    print(f"\n{'':<16}{'wall':>8}{'':>9}{'CPU':>9}{'':>9}{'memory':>10}{'':>9}{'hosts CPU':>12}")
    for name, runs in found.items():
        base = "asyncssh, warm" if name.endswith(", warm") else "asyncssh"
        cells = []
        for quantity, unit, scale in (("wall", "s", 1.0), ("cpu", "s", 1.0), ("memory", "MiB", 2.0**20)):
            middle = statistics.median(getattr(one, quantity) for one in runs) / scale
            against = ratio(found, name, base, quantity)
            value = f"{middle:.2f} {unit}" if unit == "s" else f"{middle:.0f} {unit}"
            cells.append(f"{value:>9}{'' if against is None else f'{against:.2f} ×':>9}")
        print(f"{name:<16}{''.join(cells)}{statistics.median(one.hosts_cpu for one in runs):>10.1f} s")


def show_goals(found: dict[str, list[Run]]) -> None:
    """Each goal, what was reached, and whether that is enough."""
    print("\ngoals (median of paired ratios)")
    for what, name, base, quantity, goal in GOALS:
        reached = ratio(found, name, base, quantity)
        if reached is not None:
            verdict = "reached" if reached <= goal else "short"
            print(f"  {what:<22}{reached:>7.2f} × {base:<16} goal ≤ {goal:g} ×  {verdict}")
    settings = [name for name in found if name.startswith("ansible")]
    if settings and "cronium" in found:
        best = min(settings, key=lambda name: statistics.median(one.wall for one in found[name]))
        faster = ratio(found, best, "cronium", "wall") or 0.0
        verdict = "reached" if faster >= _FASTER_THAN_ANSIBLE else "short"
        print(f"  {'faster than Ansible':<22}{faster:>7.2f} × {best:<16} goal ≥ {_FASTER_THAN_ANSIBLE:g} ×  {verdict}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/fanout", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("binary", help=argparse.SUPPRESS)
    parser.add_argument("--hosts", type=int, default=HOSTS, help=f"how many hosts (default {HOSTS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"times that each tool runs (default {ROUNDS})")
    parser.add_argument("--forks", type=int, default=FORKS, help=f"hosts at once (default {FORKS})")
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"which ones (default {','.join(TOOLS)})")
    given = parser.parse_args()
    given.tools = [name for name in given.tools.split(",") if name]
    if unknown := set(given.tools) - set(TOOLS):
        parser.error(f"no tool is called {', '.join(sorted(unknown))}; there are {', '.join(TOOLS)}")
    if min(given.hosts, given.rounds, given.forks) < 1:
        parser.error("--hosts, --rounds and --forks are numbers from 1 on")
    return given


def main() -> None:
    given = arguments()
    venv = PROJECT / ".work" / "bench-fanout"
    venv.parent.mkdir(exist_ok=True)
    missing = install([name for name in given.tools if name in PEERS], venv)
    for name, why in missing.items():
        print(f"{name}: left out: {why}")
    # In memory where there is some: on real hosts 200 jobs don't wait for one disk.
    folder = Path(
        tempfile.mkdtemp(prefix="cronium-fanout-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    )
    try:
        hosts = Hosts(folder, given.hosts)
        setting = Setting(
            folder, hosts.addresses, hosts.port, hosts.first.identity, hosts.first.known_hosts, given.forks,
            given.binary, folder / "runner", venv,
        )  # fmt: skip
        setting.write_names()
        (folder / "ssh_config").write_text(ssh_config(setting))
        chosen = [way for name in given.tools if name not in missing for way in ways(setting, name)]
        print(
            f"{given.hosts} hosts on this machine, {given.forks} at once, {given.rounds} rounds; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        with hosts.running():
            if "cronium" in given.tools:
                put_runner(setting, hosts)
            found = measure(setting, hosts, chosen, given.rounds)
        show(found)
        show_goals(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
