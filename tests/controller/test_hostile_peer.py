"""Servers that attack before anybody is authenticated: the command ends, with one clean line, in bounded memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import asyncssh
import pytest

from cronium_controller.hosts import OPENSSH, SSH
from hostile_peer import AFTER_KEY_EXCHANGE, BEHAVIOURS, BlackHole, DroppedPackets, HostilePeer, server_that
from peak_memory import MIB

PATIENCE = 180.0
BOUND = 128 * MIB
_MAIN = """
import atexit, os, sys
def note():
    with open("/proc/self/status") as status, open(os.environ["PEAK"], "w") as peak:
        peak.write(next(line for line in status if line.startswith("VmHWM:")))
atexit.register(note)
from cronium_controller.cli import main
main()
"""
"""The command, which writes down its own largest memory."""
OLD = "an old key exchange"
NAMES = [*BEHAVIOURS, "black hole", "dropped packets", *AFTER_KEY_EXCHANGE, OLD]
OPENSSH_MEETS = (
    "endless banner", "endless line", "no banner", "dripping", "reset", "version with escapes",
    "disconnect with escapes", "ignore flood", "black hole", "dropped packets", *list(AFTER_KEY_EXCHANGE)[:1], OLD,
)  # fmt: skip
"""Those whom OpenSSH's program meets, too: they are silent, endless, or have words that reach its standard error."""
MEETINGS = [*((name, SSH) for name in NAMES), *((name, OPENSSH) for name in OPENSSH_MEETS)]


class Met(NamedTuple):
    """What `cronium` said and cost."""

    status: int
    stdout: bytes
    stderr: bytes
    peak: int


class _Meeting(NamedTuple):
    process: "subprocess.Popen[bytes]"
    peak: Path

    def end(self) -> Met:
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return Met(self.process.returncode, stdout, stderr, int(self.peak.read_text().split()[1]) * 1024)


@pytest.fixture(scope="module")
def meetings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], _Meeting]]:
    """A command for each peer, all under way at once: most of the time goes by in pauses between attempts."""
    folder = tmp_path_factory.mktemp("peers")
    key = folder / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CRONIUM_", "SSH_"))}
    with ExitStack() as peers:
        ports = {name: peers.enter_context(HostilePeer(behave)).port for name, behave in BEHAVIOURS.items()}
        ports |= {name: peers.enter_context(server_that(act)) for name, act in AFTER_KEY_EXCHANGE.items()}
        # A library warns about it: that must not become a line of ours.
        old = server_that(lambda _: None, kex_algs=["diffie-hellman-group14-sha256"])
        ports[OLD] = peers.enter_context(old)
        ports["black hole"] = peers.enter_context(BlackHole()).port
        ports["dropped packets"] = peers.enter_context(DroppedPackets()).port
        started: dict[tuple[str, str], _Meeting] = {}
        for number, (name, kind) in enumerate(MEETINGS):
            home = folder / str(number)
            home.mkdir()
            hosts = home / "hosts.yaml"
            hosts.write_text(f"peer: {{host: 127.0.0.1, port: {ports[name]}, key_path: {key}, connect_timeout: 1}}\n")
            environment = kept | {
                "HOME": str(home), "CRONIUM_CONTROLLER_STATE": str(home / "state"), "PEAK": str(home / "peak"),
            }  # fmt: skip
            words = ["exec", "--hosts", str(hosts), "--on", "peer", "--known-hosts", str(home / "known")]
            words += ["--connection", kind, "--", "true"]
            process = peers.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _MAIN, *words], env=environment,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
            started[name, kind] = _Meeting(process, home / "peak")
        yield started


@pytest.mark.parametrize(("name", "kind"), MEETINGS)
def test_a_hostile_peer_is_one_clean_line(meetings: dict[tuple[str, str], _Meeting], name: str, kind: str) -> None:
    met = meetings[name, kind].end()
    assert met.status == 255, met
    assert met.stdout == b""
    [line, rest] = met.stderr.decode().split("\n")
    assert rest == ""
    assert line.startswith("cronium: peer: ")
    assert line.endswith(("[host.unreachable]", "[host.auth_failed]"))
    assert line.isprintable(), "nothing that a terminal obeys"
    assert len(line) < 1000
    assert met.peak < BOUND, f"{met.peak >> 20} MiB"
