"""Small configurations that `ssh` and we connect with, against one server: the second table of the conformance test."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cronium_controller.access import Access
from cronium_controller.connection import open_connection
from cronium_controller.errors import ControllerError
from cronium_controller.hosts import parse_host
from openssh import OpenSSHServer, free_port

_LOGGED: Final = re.compile(
    r"(Accepted|Failed) publickey for (?:invalid user )?(\S+) from (\S+) port \d+ ssh2: \S+ (\S+)"
)
CARRY: Final = (
    "import os,socket,sys,threading as t;s=socket.create_connection((sys.argv[1],int(sys.argv[2])));f=s.fileno();\
t.Thread(target=lambda:[os.write(1,b) for b in iter(lambda:os.read(f,65536),b'')],daemon=True).start();\
[s.sendall(b) for b in iter(lambda:os.read(0,65536),b'')]"
)


@dataclass(frozen=True)
class Network:
    """One server that lets in the key `id_ed25519`, and what configurations may name."""

    server: OpenSSHServer
    folder: Path

    def filled(self, text: str) -> str:
        return (
            text.replace("{port}", str(self.server.port))
            .replace("{closed}", str(free_port()))
            .replace("{key}", str(self.server.identity))
            .replace("{folder}", str(self.folder))
            .replace("{carry}", f"{sys.executable} {self.folder}/carry.py")
        )

    def log(self) -> str:
        return self.server.log.read_text(errors="replace")

    @classmethod
    def made(cls, server: OpenSSHServer, folder: Path) -> "Network":
        """A network of a server that runs, with OPTIONS."""
        for name in ("other", "third"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        (folder / "carry.py").write_text(CARRY)
        key = " ".join((server.folder / "host_key.pub").read_text().split()[:2])
        names = ("[127.0.0.1]", "[127.0.0.2]", "[localhost]")
        (folder / "known_hosts").write_text("".join(f"{name}:{server.port} {key}\n" for name in names))
        return cls(server, folder)

    def configure(self, name: str, home: Path) -> None:
        """Writes the files of a row."""
        (home / ".ssh").mkdir()
        shutil.copy(self.folder / "known_hosts", home / ".ssh" / "known_hosts")
        config = home / ".ssh" / "config"
        more = f"Host *\n UserKnownHostsFile {home}/.ssh/known_hosts\n StrictHostKeyChecking accept-new\n"
        config.write_text(self.filled(ROWS[name]) + more)
        config.chmod(0o600)

    def theirs(self, home: Path) -> "Outcome":
        """What `ssh` does with the configuration."""
        before = len(self.log())
        words = ["ssh", "-F", f"{home}/.ssh/config", "-o", "BatchMode=yes", "web", "true"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        return Outcome(done.returncode == 0, _LOGGED.findall(self.log()[before:]))

    async def ours(self) -> "tuple[Outcome, ControllerError | None]":
        """What we do; HOME is the one that was configured."""
        before = len(self.log())
        error = await _refusal()
        return Outcome(error is None, _LOGGED.findall(self.log()[before:])), error


class Outcome(NamedTuple):
    """Whether a connection was made, and how the server decided about each key, account and address."""

    is_connected: bool
    decisions: list[tuple[str, str, str, str]]


async def _refusal() -> ControllerError | None:
    try:
        connection = await open_connection(parse_host("web"), Access(warn=lambda _: None))
    except ControllerError as error:
        return error
    await connection.close()
    return None


OPTIONS: Final = ["ListenAddress 127.0.0.2", "MaxAuthTries 20"]
"""Of the server."""
ROWS: Final = {
    "an address, a port and a key": "Host web\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n",
    "quotes, comments and an equals sign": 'Host "web" # don\'t\n HostName=127.0.0.1\n Port {port} # x\n'
    ' IdentityFile "{key}"\n',
    "another address": "Host web\n HostName 127.0.0.2\n Port {port}\n IdentityFile {key}\n",
    "an address here": "Host web\n HostName 127.0.0.1\n BindAddress 127.0.0.3\n Port {port}\n IdentityFile {key}\n",
    "a key that is not let in": "Host web\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/other\n",
    "a second key": "Host web\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/other\n IdentityFile {key}\n",
    "a missing key and one that is let in": "Host web\n HostName 127.0.0.1\n Port {port}\n"
    " IdentityFile /nonexistent/key\n IdentityFile {key}\n",
    "no key": "Host web\n HostName 127.0.0.1\n Port {port}\n IdentityFile none\n IdentityAgent none\n",
    "another account": "Host web\n HostName 127.0.0.1\n User no-such-user\n Port {port}\n IdentityFile {key}\n",
    "a closed port": "Host web\n HostName 127.0.0.1\n Port {closed}\n IdentityFile {key}\n",
    "a ProxyCommand": "Host web\n HostName 127.0.0.1\n ProxyCommand {carry} %h %p 2>/dev/null # c\n Port {port}\n"
    " IdentityFile {key}\n",
    "a ProxyCommand that fails": "Host web\n ProxyCommand echo shut >&2\n IdentityFile {key}\n",
    "a ProxyJump": "Host web\n HostName 127.0.0.2\n ProxyJump gate\nHost gate\n HostName 127.0.0.1\n"
    "Host *\n Port {port}\n IdentityFile {key}\n",
    "no jump after all": "Host web\n HostName 127.0.0.1\n ProxyCommand none\n Port {port}\n IdentityFile {key}\n"
    "Host *\n ProxyJump nowhere.invalid\n",
    "a condition": 'Match exec "test %n = web"\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n',
    "a cipher": "Host web\n HostName 127.0.0.1\n Ciphers aes128-ctr\n Port {port}\n IdentityFile {key}\n",
}
"""A known_hosts file and accept-new are added to each."""
REFUSED: Final = {"a key that is not let in", "no key", "another account", "a closed port", "a ProxyCommand that fails"}
