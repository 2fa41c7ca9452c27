"""A private, real OpenSSH server on the loopback interface, with throw-away keys, for the tests and scripts/demo.

It runs as whoever starts it and lets in that account only. Nothing of the system's own SSH configuration is read or
changed. `stop` ends the server and every session process it started, by pid.
"""

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from pathlib import Path

READY_SECONDS = 60.0


def sshd_path() -> str | None:
    """Where the server program is, or None when it isn't installed."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def reads_bashrc() -> bool:
    """Whether this account's login shell reads .bashrc when sshd starts it for a command."""
    return os.path.basename(pwd.getpwuid(os.geteuid()).pw_shell) == "bash"


class OpenSSHServer:
    """`environment` is what sessions get in addition; `options` are sshd_config's first lines, `matches` its last.

    `mounts` are files that take the place of the system's, by their paths, for this server alone: for root only.
    `within` are words in front of the server's: a program that becomes the server.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: dict[str, str] | None = None,
        options: list[str] | None = None,
        matches: list[str] | None = None,
        mounts: dict[Path, str] | None = None,
        within: list[str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.identity = folder / "id_ed25519"
        self.known_hosts = folder / "known_hosts"
        self.log = folder / "sshd.log"
        self._environment = environment or {}
        self._options = options or []
        self._matches = matches or []
        self._mounts = mounts or {}
        self._within = within or []
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "id_ed25519"):
            if not (folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "id_ed25519.pub", folder / "authorized_keys")

    @property
    def target(self) -> str:
        """The host as `cronium --host` takes it."""
        return f"127.0.0.1:{self.port}"

    def renew_host_key(self) -> None:
        """Gives the server another host key, as a reinstalled machine, or an impostor, would have."""
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key"], check=True)

    def start(self) -> None:
        """Starts it and waits until it greets."""
        program = sshd_path()
        assert program is not None, "openssh-server is not installed"
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its privilege separation directory
        configuration = [
            *self._options,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "LogLevel VERBOSE",
        ]
        if not any(line.startswith("Subsystem") or "internal-sftp" in line for line in self._options):
            configuration.append("Subsystem sftp internal-sftp")
        if self._environment:
            words = " ".join(f'"{name}={value}"' for name, value in self._environment.items())
            configuration.append(f"SetEnv {words}")
        configuration += self._matches
        (self.folder / "sshd_config").write_text("\n".join(configuration) + "\n")
        command = [program, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.log)]
        for file, place in self._mounts.items():
            command = ["sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", str(file), place, *command]
        self._process = subprocess.Popen(
            [*self._within, *(["unshare", "-m"] if self._mounts else []), *command],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.settimeout(2)
                if probe.recv(4) == b"SSH-":
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"sshd did not start: {self.log.read_text() if self.log.exists() else ''}")

    def stop(self) -> None:
        """Ends the server and its sessions."""
        if self._process is None:
            return
        sessions = self.session_pids()
        for pid in [self._process.pid, *sessions]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self._process.wait(10)
        self._process = None

    def session_pids(self) -> list[int]:
        """The server processes of all connections that are open."""
        if self._process is None:
            return []
        found = []
        waiting = [self._process.pid]
        while waiting:
            servers = [pid for pid in child_pids(waiting.pop()) if _command(pid) == "sshd"]
            found += servers
            waiting += servers
        return found

    def count_connections(self) -> int:
        """How many connections are open to it, as the kernel counts them: also those that it has not accepted yet."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[2].endswith(f":{self.port:04X}") and row[3] == "01" for row in rows)

    def count_in_log(self, text: str) -> int:
        """How often the server's log says `text`."""
        return self.log.read_text(errors="replace").count(text)

    def __enter__(self) -> "OpenSSHServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def child_pids(pid: int) -> list[int]:
    """A process's children; none of one that has ended, nor of a thread that ends meanwhile."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


_reserved: deque[socket.socket] = deque()
_RESERVED_AT_MOST = 64
"""More than one test has servers; each costs a descriptor."""


def free_port() -> int:
    """A port of the loopback interface on which nobody listens, nor is given by the kernel: only who asks for it.

    It is bound here without listening, which keeps no server from it that sets SO_REUSEADDR, as all do. The last ports
    given out are kept so.
    """
    if len(_reserved) == _RESERVED_AT_MOST:
        _reserved.popleft().close()
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    _reserved.append(reserved)
    port: int = reserved.getsockname()[1]
    return port


@atexit.register
def _give_ports_back() -> None:
    while _reserved:
        _reserved.pop().close()
