"""Connections by OpenSSH's own program: jobs over them, those that persist, what is left of them, what ssh says."""

import asyncio
import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cronium_controller import inventory, openssh_master, openssh_words
from cronium_controller.connections import Connections
from cronium_controller.errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError
from cronium_controller.hosts import Host
from cronium_controller.memory import Memory
from cronium_controller.openssh_mux import Control
from cronium_controller.store import Store
from kinds import ssh_reading
from openssh import free_port
from remote_host import RemoteHost
from runner_process import command_line, wait_until

pytestmark = pytest.mark.sshd
OPENSSH = ("--connection", "openssh")

_NOTE_MODULES = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["NOTED"], "a").write(f"asyncssh={'asyncssh' in sys.modules}\\n"))
"""


@pytest.fixture
def noted(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that notes at its end whether it has loaded asyncssh."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(_NOTE_MODULES)
    return {"PYTHONPATH": str(tmp_path / "site"), "NOTED": str(tmp_path / "noted")}


def masters(remote: RemoteHost) -> list[int]:
    """The ssh processes that hold connections to the host."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        words = command_line(int(name)).decode(errors="replace")
        if "\0ControlMaster=yes\0" in words and f"\0{remote.server.port}\0" in words:
            found.append(int(name))
    return found


def sockets(remote: RemoteHost) -> list[Path]:
    """The control sockets of its masters."""
    words = [command_line(pid).decode().split("\0") for pid in masters(remote)]
    return [Path(line[line.index("-S") + 1]) for line in words]


def ended(remote: RemoteHost) -> None:
    for pid in masters(remote):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not masters(remote), "the masters to end")


def test_a_later_command_uses_what_persists(remote: RemoteHost, noted: dict[str, str], tmp_path: Path) -> None:
    script = remote.script("echo out; cronium.output k v; exit 3")
    first = remote.run_json(*OPENSSH, script)  # puts the runner there
    assert (first["exit status"], first["output"], first["transport"]) == (3, {"k": "v"}, "direct")
    assert masters(remote) == [], "it was not asked to persist"
    for count in (2, 2):
        told = remote.run_json(*OPENSSH, "--persist", "600", script, env=noted)
        assert (told["exit status"], told["output"]) == (3, {"k": "v"})
        assert remote.server.count_in_log("Accepted publickey") == count
    assert Path(noted["NOTED"]).read_text() == "asyncssh=False\n" * 2
    # Under other settings it is not used: another policy, another file of host keys, another key, another user's agent.
    (other := tmp_path / "known_hosts").write_bytes(remote.known_hosts.read_bytes())
    shutil.copy(remote.server.identity, tmp_path / "id")
    changes: list[tuple[tuple[object, ...], dict[str, str]]] = [
        (("--host-keys", "strict"), {}),
        (("--known-hosts", other), {}),
        (("--identity", tmp_path / "id"), {}),
        ((), {"SSH_AUTH_SOCK": str(tmp_path / "agent")}),
    ]
    for count, (words, environment) in enumerate(changes, 3):
        done = remote.cronium(
            "exec", "--host", remote.server.target, *OPENSSH, "--persist", "600", *words, "--", "true", env=environment
        )
        assert (done.returncode, remote.server.count_in_log("Accepted publickey")) == (0, count), done.stderr
    alone = remote.cronium("exec", "--host", remote.server.target, *OPENSSH, "--persist", "0", "--", "true")
    assert (alone.returncode, remote.server.count_in_log("Accepted publickey")) == (0, 7)
    assert len(masters(remote)) == 5
    ended(remote)
    # What is left of masters that were ended is a socket that nobody listens at; a new one takes its place.
    assert remote.run_json(*OPENSSH, "--persist", "600", script)["exit status"] == 3
    ended(remote)


@pytest.fixture
def short_state(remote: RemoteHost) -> Iterator[Path]:
    """A state folder with so short a path that the sockets are in it, and not where those of other tests are."""
    with tempfile.TemporaryDirectory(prefix="cs", dir="/tmp") as folder:
        remote.remembered = Path(folder) / "state"
        yield remote.remembered


def test_what_persists_is_listed_and_ended(remote: RemoteHost, short_state: Path, tmp_path: Path) -> None:
    def listed(*words: str) -> list[dict[str, object]]:
        done = remote.cronium("hosts", *words, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert listed("--connections") == []
    gate = tmp_path / "gate"
    target = remote.server.target
    kept = ("exec", "--host", target, *OPENSSH, "--persist", "600", "--")
    assert remote.cronium(*kept, "true").returncode == 0
    [one] = listed("--connections")
    assert (one["host"], one["address"], one["port"]) == (target, "127.0.0.1", remote.server.port)
    assert (one["user"], one["transport"], one["inUse"]) == (getpass.getuser(), "direct", False)
    since, until = (datetime.fromisoformat(str(one[name])) for name in ("since", "until"))
    assert since + timedelta(seconds=599) <= until
    with remote.start_cronium(*kept, f"echo on; while [ ! -e {gate} ]; do sleep 0.05; done", stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        [one] = listed("--connections")
        assert (one["inUse"], one["until"]) == (True, None)
        left = remote.cronium("hosts", "--disconnect")
        assert (left.stdout, left.stderr) == (b"", f"cronium: {target}: left, as a command uses it\n".encode())
        gate.touch()
        assert process.wait() == 0
    shown = remote.cronium("hosts", "--connections").stdout.decode().splitlines()
    assert [line.split()[0] for line in shown] == ["HOST", target]
    assert remote.cronium("hosts", "--disconnect", "another").stderr == b"cronium: no connection to another is held\n"
    assert [one["host"] for one in listed("--disconnect", target)] == [target]
    assert (masters(remote), listed("--connections")) == ([], [])
    assert list((short_state / "ssh").iterdir()) == []


async def test_a_master_waits_for_a_busy_controller(remote: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no client yet when it has logged in, and others may be on their way in the same process."""
    watched = openssh_master._watched

    async def late(path: str) -> Control:
        await asyncio.sleep(2.5)
        return await watched(path)

    monkeypatch.setattr(openssh_master, "_watched", late)
    connection = await Connections(remote.access(connection="openssh"), Memory()).open(remote.host)
    done = await connection.run("echo works")
    await connection.close()
    assert done.stdout == b"works\n"


def test_a_killed_command_leaves_no_master(remote: RemoteHost, tmp_path: Path) -> None:
    """But for as long as what it has started on the host goes on, and keeps its output open."""
    gate = tmp_path / "gate"
    command = f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done"
    words = ("exec", "--host", remote.server.target, *OPENSSH, "--", command)
    with remote.start_cronium(*words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        [socket] = sockets(remote)
        assert socket.is_socket()
        process.kill()
    gate.touch()
    wait_until(lambda: not masters(remote) and not socket.exists(), "the master to end")


def test_what_the_configuration_of_ssh_says_counts(remote: RemoteHost, tmp_path: Path) -> None:
    """It reads the one of the password database's home; a program before it names another."""
    (tmp_path / "config").write_text(
        f"Host alias\n  HostName 127.0.0.1\n  Port {remote.server.port}\n  ControlPersist 600\n"
    )
    env = {"PATH": f"{ssh_reading(tmp_path / 'bin', tmp_path / 'config')}:{os.environ['PATH']}"}
    for words, count in (((), 1), ((), 1), (("--persist", "0"), 2)):
        done = remote.cronium("exec", "--host", "alias", *OPENSSH, *words, "--", "echo hi", env=env)
        assert (done.returncode, done.stdout) == (0, b"hi\n"), done.stderr
        assert remote.server.count_in_log("Accepted publickey") == count
    ended(remote)
    (tmp_path / "config").write_text("Prot 22\n")
    done = remote.cronium("exec", "--host", "alias", *OPENSSH, "--", "true", env=env)
    assert (done.returncode, done.stderr.count(b"\n")) == (125, 1)
    assert b"prot" in done.stderr.lower()
    assert done.stderr.endswith(b"[host.config]\n")


def test_how_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(
        "defaults: {connection: openssh, persist: 60}\n"
        "hosts: {a: , b: {connection: ssh, persist: 0}, c: {persist: 1.5}, here: 'local:'}\n"
    )
    known = inventory.load(str(file), environment={})
    assert [(known.host(name).connection, known.host(name).persist) for name in "abc"] == [
        ("openssh", 60), ("ssh", 0), ("openssh", 1.5),
    ]  # fmt: skip
    assert known.host("a").account != known.host("b").account
    assert known.host("here") == Host("here", "localhost", is_local=True)
    store = Store(tmp_path / "controller.db")
    for name in "abc":
        store.record(name, known.host(name), "0" * 64, "x", 1.0)
        found = store.find(name)
        assert found is not None
        assert found.host == known.host(name), "a later process does not find the same"
    store.close()
    for text, said in (("connection: telnet", "ssh or openssh"), ("persist: -1", "a number of seconds")):
        file.write_text(f"hosts:\n  a: {{{text}}}\n")
        with pytest.raises(ControllerError, match=rf"hosts.yaml:2: a: .*must be {said}"):
            inventory.load(str(file), environment={})
    with pytest.raises(ControllerError, match="no kind of connection"):
        Host("a", "a", connection="telnet")


@pytest.mark.parametrize("how", ["known", "changed", "strict", "refused", "away", "key"])
def test_failures_have_the_codes_of_ssh(remote: RemoteHost, how: str, tmp_path: Path) -> None:
    target, words = remote.server.target, []
    if how == "changed":
        assert remote.cronium("exec", "--host", target, *OPENSSH, "--", "true").returncode == 0
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
        key = (tmp_path / "other.pub").read_text()
        remote.known_hosts.write_text(f"[127.0.0.1]:{remote.server.port} {key}")
    elif how == "strict":
        words = ["--host-keys", "strict"]
    elif how == "refused":
        target = f"nosuchuser@{target}"
    elif how == "away":
        target = f"127.0.0.1:{free_port()}"
    elif how == "key":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "sesame", "-f", tmp_path / "locked"], check=True)
        words = ["--identity", str(tmp_path / "locked")]
    told = {}
    for kind in ("ssh", "openssh"):
        done = remote.cronium("exec", "--host", target, "--connection", kind, *words, "--", "echo hi")
        told[kind] = done.returncode, done.stderr.decode().rpartition("[")[2]
        assert b"\x1b" not in done.stderr
    assert done.stderr.count(b"\n") == (how != "known"), done.stderr
    assert told["ssh"] == told["openssh"]
    assert told["ssh"][0] in ((0,) if how == "known" else (125, 255))
    assert masters(remote) == []


WORDS = [
    ("ssh: connect to host web01 port 22: Connection refused\r\n", UnreachableError, "port 22: Connection refused"),
    ("ssh: Could not resolve hostname web01: Name or service not known\r\n", UnreachableError, "not resolve hostname"),
    ("kex_exchange_identification: read: Connection reset by peer\n", UnreachableError, "reset by peer"),
    ("nologin: away until noon\ndeploy@web01: Permission denied (publickey).\n", AuthenticationError, "until noon"),
    (
        "Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures",
        AuthenticationError,
        "Too many",
    ),
    (
        "No ED25519 host key is known for web01 and you have requested strict checking.",
        HostKeyError,
        "strict checking",
    ),
    ("@@@@@@@@@@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\n", HostKeyError, "ssh-keygen -R"),
    ("/root/.ssh/config: line 3: Bad configuration option: prot\n", ControllerError, "line 3"),
    ("", UnreachableError, "without a word"),
    ("\x1b[2Jevil\u202etxt\n" * 400, UnreachableError, "evil"),
]


def test_what_ssh_says_of_a_connection_is_clean() -> None:
    said = b"debug\nFailed to add the host to the list of known hosts (/a\x1b[2J).\r\n"
    assert openssh_words.warnings(said) == [r"Failed to add the host to the list of known hosts (/a\x1b[2J)."]


@pytest.mark.parametrize(("said", "kind", "shown"), WORDS)
def test_what_ssh_says_is_one_error(said: str, kind: type[ControllerError], shown: str) -> None:
    error = openssh_words.failure(said.encode(), Host("web01", "web01"))
    assert type(error) is kind or (kind is HostKeyError and isinstance(error, kind))
    assert shown in error.message
    assert "\x1b" not in error.message
    assert "\n" not in error.message
    assert len(error.message) < 1000
