"""macOS as a controller's machine, imitated: without what Linux alone has, the same commands reach a real sshd.

Not a real one: see tests/like_macos.py for what is taken away, and docs/macos.md for what holds.
"""

import ast
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cronium_controller import openssh_mux
from cronium_controller.openssh_mux import MasterGoneError
from like_macos import ABSENT
from openssh import sshd_path
from payload_bytes import make_payload
from remote_host import RemoteHost
from runner_process import ROOT

pytestmark = pytest.mark.skipif(
    find_spec("ctypes.macholib") is None, reason="this Python lacks ctypes.macholib, which is for macOS"
)
PATIENCE = 60.0
_MAIN = "import like_macos; like_macos.pretend(); from cronium_controller.cli import main; main()"


@pytest.fixture
def remote(tmp_path: Path, carrier: Path) -> Iterator[RemoteHost]:
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    with RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib") as made:
        yield made


def cronium(remote: RemoteHost, *words: object) -> subprocess.CompletedProcess[str]:
    """`cronium COMMAND`, with the key, in an interpreter that looks like one on macOS."""
    command, *rest = map(str, words)
    packages = [str(ROOT / name) for name in ("tests", "runner", "helpers", "controller")]
    environment = remote.environment | {"PYTHONPATH": ":".join(packages), "HOME": str(remote.folder)}
    return subprocess.run(
        [sys.executable, "-c", _MAIN, command, "--identity", str(remote.server.identity), *rest],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


@pytest.mark.sshd
def test_a_job_runs_from_a_machine_without_linux(remote: RemoteHost) -> None:
    script = remote.script("uname -s; cronium.output used 42\n")
    for mode in ("bundled", "api"):
        done = cronium(remote, "run", "--host", remote.server.target, "--mode", mode, script)
        assert (done.returncode, done.stdout) == (0, "Linux\n"), done.stderr


@pytest.mark.sshd
def test_commands_and_copies_work_without_linux(remote: RemoteHost, tmp_path: Path) -> None:
    target = remote.server.target
    done = cronium(remote, "exec", "--host", target, "--", "echo", "words")
    assert (done.returncode, done.stdout) == (0, "words\n"), done.stderr
    (remote.home / "there").write_text("content")
    done = cronium(remote, "get", "--host", target, f"{remote.home}/there", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there").read_text() == "content"


@pytest.mark.sshd
def test_the_ssh_program_connects_without_linux(remote: RemoteHost) -> None:
    words = ("--connection", "openssh", "--persist", "20", "--host", remote.server.target)
    for _ in range(2):  # the second one finds the first one's master
        done = cronium(remote, "exec", *words, "--", "echo", "words")
        assert (done.returncode, done.stdout) == (0, "words\n"), done.stderr
    ended = subprocess.run(
        [sys.executable, "-c", _MAIN, "hosts", "--disconnect"],
        env=remote.environment | {"PYTHONPATH": f"{ROOT}/tests", "HOME": str(remote.folder)},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_payload_is_validated_without_linux(tmp_path: Path, form: str) -> None:
    """As `cronium payload build` and `verify` have the runner of this machine do."""
    files = {"manifest.yaml": b"version: v1\ninterpreter: sh\nentrypoint: below/s.sh\n", "below/s.sh": b"true\n"}
    for name, content in files.items():
        (tmp_path / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "job" / name).write_bytes(content)
    (tmp_path / "job.tar.gz").write_bytes(make_payload(files))
    path = tmp_path / {"folder": "job", "archive": "job.tar.gz"}[form]
    program = _MAIN.replace("cronium_controller", "cronium_runner").replace("main()", "raise SystemExit(main())")
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/tests", "CRONIUM_STATE_DIR": str(tmp_path / "state")},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


def test_a_dead_process_keeps_no_partial_copy_without_linux(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    program = (
        "import like_macos, sys; like_macos.pretend(); from cronium_controller import partial_copies as p; "
        "print(*(p._is_at_work(f'{p._process(int(pid))}/0123') for pid in sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(dead.pid), str(os.getpid())],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/tests"},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout == "False True\n", done.stderr


def test_the_peer_of_a_socket_is_known_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """xucred as macOS gives it: version 0, the user, one group."""

    class Peer:
        def __init__(self, uid: int) -> None:
            self.uid = uid

        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            assert (level, option) == (0, 1)
            return struct.pack("IIh2x16I", 0, self.uid, 1, *range(16))[:size]

    monkeypatch.delattr(socket, "SO_PEERCRED")
    openssh_mux._refuse_strangers(Peer(os.geteuid()))  # type: ignore[arg-type]
    with pytest.raises(MasterGoneError, match="uid 4242"):
        openssh_mux._refuse_strangers(Peer(4242))  # type: ignore[arg-type]


def test_no_module_of_the_controller_names_what_macos_lacks() -> None:
    """But where its absence is looked for first. Says which names there are before a Mac does."""
    absent = {f"{module.__name__}.{name}" for module, names in ABSENT.items() for name in names.split()}
    found = set()
    for path in sorted((ROOT / "controller").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(ast.Name(module), name) if f"{module}.{name}" in absent:
                    found.add(f"{path.name}: {module}.{name}")
    assert found == {"connection.py: socket.TCP_QUICKACK", "openssh_mux.py: socket.SO_PEERCRED"}
