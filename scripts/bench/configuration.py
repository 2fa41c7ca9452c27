"""What an SSH configuration costs the controller: one command on each of many hosts, without one and with 300 lines.

The hosts are addresses of the loopback interface with one OpenSSH server. Each figure is of a process of its own, user
and system time with all `ssh -G` that it starts. A script of one line tells `ssh` the file, as it would look for it in
the account's own home folder: about 1 ms of each first answer is that script's.
"""

import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from openssh import OpenSSHServer  # noqa: E402

AT_ONCE: Final = 16
ADDRESSES: Final = [f"127.0.0.{number}" for number in range(2, 16)]
CONDITIONS: Final = ("no configuration", "300 lines, ssh is asked", "300 lines, asked before", "300 lines, our reader")


def main(hosts: int, rounds: int) -> None:
    """Prints a table: CPU of the controller in ms a host, and against the first line of the same round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = [*(f"ListenAddress {address}" for address in ADDRESSES), "MaxStartups 1000"]
        with OpenSSHServer(folder / "sshd", options=options) as server:
            prepare(folder, server)
            figures: dict[str, list[float]] = {condition: [] for condition in CONDITIONS}
            for _ in range(rounds):
                shutil.rmtree(folder / "full" / "state", ignore_errors=True)
                for condition in CONDITIONS:
                    figures[condition].append(measured(folder, server, condition, hosts))
    print(f"{hosts} hosts, medians of {rounds}\n\n| configuration | CPU, ms a host | × |\n|---|---|---|")
    for condition, found in figures.items():
        times = statistics.median(one / first for one, first in zip(found, figures[CONDITIONS[0]], strict=True))
        print(f"| {condition} | {statistics.median(found):.2f} | {times:.2f} |")


def prepare(folder: Path, server: OpenSSHServer) -> None:
    """Two homes, `none` without a configuration and `full` with one, and an `ssh` that reads the latter."""
    lines = [f"Host other{number}\n  HostName 127.1.0.{number}\n  User nobody\n  Port 9" for number in range(66)]
    lines += [f"Host *-{address}\n  HostName {address}" for address in ADDRESSES]
    lines += ["Host *", "  ServerAliveInterval 30", f"  IdentityFile {server.identity}", "  IdentitiesOnly yes"]
    lines += [f"Match host 127.*\n  Port {server.port}\n  AddressFamily inet\n  ConnectTimeout 60"]
    for home in ("none", "full"):
        (folder / home / ".ssh").mkdir(parents=True)
        key = " ".join((server.folder / "host_key.pub").read_text().split()[:2])
        (folder / home / ".ssh" / "known_hosts").write_text(f"[127.0.0.*]:{server.port} {key}\n")
    config = folder / "full" / ".ssh" / "config"
    config.write_text("\n".join(lines) + "\n")
    config.chmod(0o600)
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)


def measured(folder: Path, server: OpenSSHServer, condition: str, hosts: int) -> float:
    """Milliseconds of CPU a host, of a process of its own."""
    home = folder / ("none" if condition == CONDITIONS[0] else "full")
    environment = {
        **os.environ,
        "HOME": str(home),
        "CRONIUM_CONTROLLER_STATE": str(home / "state"),
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
    }
    environment.pop("SSH_AUTH_SOCK", None)
    words = [sys.executable, __file__, "--one", condition, str(hosts), str(server.port), str(server.identity)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


async def one(condition: str, hosts: int, port: int, identity: str) -> None:
    """Runs `true` on each host, and prints what that cost."""
    from cronium_controller import ssh_config
    from cronium_controller.access import Access
    from cronium_controller.connection import open_connection
    from cronium_controller.hosts import Host

    ssh_config.is_home_of_account = lambda: condition != CONDITIONS[3]
    room = asyncio.Semaphore(AT_ONCE)

    async def call(number: int) -> None:
        address = ADDRESSES[number % len(ADDRESSES)]
        if condition == CONDITIONS[0]:
            host = Host(address, address, port=port, identity=identity)
        else:
            host = Host(f"h{number}", f"h{number}-{address}", identity=identity)
        async with room:
            connection = await open_connection(host, Access(connect_timeout=60))
            done = await connection.run("true")
            await connection.close()
            assert done.exit_status == 0

    began = cpu()
    await asyncio.gather(*map(call, range(hosts)))
    print((cpu() - began) * 1000 / hosts)


def cpu() -> float:
    """Seconds of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        condition, hosts, port, identity = sys.argv[2:]
        asyncio.run(one(condition, int(hosts), int(port), identity))
    else:
        given = [int(word) for word in sys.argv[1:]]
        main(*given, *(200, 3)[len(given) :])
