"""Many hosts that are one machine: real OpenSSH servers on loopback addresses, one account, one state directory.

An sshd listens on 16 addresses at most, so there are several. Addresses on which nobody listens, on which nobody
answers, and whose recorded key is another one are made here, too.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from openssh import OpenSSHServer
from remote_host import RemoteHost

_ADDRESSES_OF_ONE: Final = 15
"""sshd's MAX_LISTEN_SOCKS is 16, and 127.0.0.1 is one of them."""
OPTIONS: Final = ["MaxStartups 1000"]


class ManyHosts(RemoteHost):
    """`targets` are `count` hosts that answer. With `own_homes` each has a home and a state directory of its own."""

    def __init__(
        self,
        folder: Path,
        binary: Path,
        root: Path,
        count: int,
        *,
        own_homes: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        addresses = [f"127.0.{1 + number // 200}.{1 + number % 200}" for number in range(count)]
        groups = [addresses[start : start + _ADDRESSES_OF_ONE] for start in range(0, count, _ADDRESSES_OF_ONE)]
        own = []
        if own_homes:
            homes = folder / "homes"
            for address in addresses:
                (homes / address).mkdir(mode=0o700, parents=True)
            own = [
                f"ForceCommand set -- $SSH_CONNECTION; export HOME={homes}/$3 CRONIUM_STATE_DIR={folder}/state/$3; "
                'cd; eval "$SSH_ORIGINAL_COMMAND"',
                "MaxSessions 20",  # doctor waits for room for its eleventh
            ]
        super().__init__(
            folder, binary, root, options=[*OPTIONS, *own, *_listening(groups[0])], environment=environment
        )
        self.servers = [self.server]
        environment = {"CRONIUM_STATE_DIR": str(self.state), "HOME": str(self.home), **(environment or {})}
        for number, group in enumerate(groups[1:]):
            beside = folder / f"sshd{number}"
            beside.mkdir()
            for key in ("host_key", "id_ed25519"):
                for name in (key, f"{key}.pub"):
                    shutil.copy(self.server.folder / name, beside / name)
            options = [*OPTIONS, *own, *_listening(group)]
            self.servers.append(OpenSSHServer(beside, environment=environment, options=options))
        self.targets = [
            f"{address}:{server.port}" for server, group in zip(self.servers, groups, strict=True) for address in group
        ]
        self._running = ExitStack()
        self._hanging: list[socket.socket] = []

    def __enter__(self) -> "ManyHosts":
        for server in self.servers:
            self._running.enter_context(server)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        self.check_nothing_left()

    def home_of(self, target: str) -> Path:
        """The home of a host of `targets` that has its own."""
        return self.folder / "homes" / target.partition(":")[0]

    def refusing(self, count: int) -> list[str]:
        """Hosts at which nobody listens."""
        return [f"127.0.9.{1 + number}:{self.server.port}" for number in range(count)]

    def hanging(self, count: int) -> list[str]:
        """Hosts that take a connection and never greet."""
        found = []
        for number in range(count):
            listening = self._running.enter_context(socket.socket())
            listening.bind((f"127.0.8.{1 + number}", 0))
            listening.listen(5)
            self._hanging.append(listening)
            found.append("{}:{}".format(*listening.getsockname()))
        return found

    def count_waiting(self) -> list[int]:
        """How many connections each of the hanging hosts was sent. Takes them."""
        return [_count_taken(listening) for listening in self._hanging]

    def connections(self) -> list[int]:
        """The servers' processes of connections that are open."""
        servers = {(server.folder / "sshd.pid").read_text().strip() for server in self.servers}
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) in servers]

    def change_keys(self, targets: list[str]) -> None:
        """Has the operator know another key of these hosts."""
        other = self.folder / "other_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
        key = " ".join(other.with_suffix(".pub").read_text().split()[:2])
        lines = ["[{}]:{} {}\n".format(*target.split(":"), key) for target in targets]
        with self.known_hosts.open("a") as file:
            file.writelines(lines)


def _parent(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:  # it has ended
        return ""


def _count_taken(listening: socket.socket) -> int:
    listening.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def _listening(addresses: list[str]) -> list[str]:
    return [f"ListenAddress {address}" for address in addresses]
