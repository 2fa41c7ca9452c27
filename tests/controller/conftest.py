"""A host behind a real OpenSSH server whose runner runs from this checkout, so that no binary has to be built first."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cronium_controller.runners import Runners
from documented import OPTIONS
from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import ROOT, with_digest


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What clients remember of hosts goes into the test's folder: nothing of the account's own plays a part."""
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(tmp_path / "remembered"))


@pytest.fixture(scope="session")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is deployed: a script by the binary's name that installs itself and starts the runner from source."""
    path = tmp_path_factory.mktemp("carrier") / f"cronium-runner-0.0.0-linux-{os.uname().machine}"
    folders = os.pathsep.join(str(ROOT / name) for name in ("runner", "helpers"))
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = install ]; then mkdir -m 700 "$2" && cp "$0" "$2/cronium-runner" && '
        "printf 'cronium-runner bundle 1\\n0.0.0 000000000000 c t\\nf 0700 %d cronium-runner\\n' $(wc -c <\"$0\") "
        '>"$2/contents"; exit; fi\n'
        f'PYTHONPATH={shlex.quote(folders)} exec {shlex.quote(sys.executable)} -m cronium_runner "$@"\n'
    )
    return with_digest(path)


@pytest.fixture
def remote(
    tmp_path: Path,
    carrier: Path,
    install_directory: Path,
    connection: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RemoteHost]:
    """A host of this test's own, its server running."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    made = RemoteHost(
        tmp_path / "remote",
        carrier,
        tmp_path / "lib",
        environment={"CRONIUM_INSTALL_DIR": str(install_directory)},
        connection=connection,
        options=[f"ListenAddress 127.0.0.{number}" for number in (2, 3)],  # for what works on several hosts
    )
    # The API runs in this process: the real account's SSH configuration and agent must not play a part.
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with made:
        yield made


_IMPOSTOR = """
import json, os
from cronium_runner.wire import frames
from cronium_runner.wire.frames import Kind

os.write(1, frames.MAGIC + frames.encode_json(Kind.HELLO, 0, {"protocol": [1, 1]}))
reader = frames.FrameReader()
while piece := os.read(0, 65536):
    for frame in reader.feed(piece):
        if frame.kind == Kind.PING:
            os.write(1, frames.encode(Kind.PONG, 0, frame.body))
            continue
        with open(HEARD, "a") as heard:
            heard.write(Kind(frame.kind).name + "\\n")
        if frame.kind in (Kind.SUBMIT, Kind.ATTACH):
            for kind, body in ANSWERS:
                os.write(1, frames.encode(kind, frame.channel, json.dumps(body).encode()))
"""


class Impostor:
    """Something in the agent's place that answers every SUBMIT and ATTACH as it is told to."""

    def __init__(self, folder: Path, carrier: Path, answers: list[tuple[int, object]]) -> None:
        folder.mkdir()
        self._heard = folder / "heard"
        program = folder / "impostor.py"
        program.write_text(f"HEARD = {str(self._heard)!r}\nANSWERS = {answers!r}\n{_IMPOSTOR}")
        self.binary = folder / carrier.name
        self.binary.write_text(carrier.read_text().replace("-m cronium_runner", shlex.quote(str(program))))
        with_digest(self.binary)
        self.root = folder / "lib"

    @property
    def runners(self) -> Runners:
        """For a controller that is to deploy it."""
        return Runners(str(self.binary), root=str(self.root))

    @property
    def environment(self) -> dict[str, str]:
        """For a command that is to deploy it."""
        return {"CRONIUM_RUNNER_BINARY": str(self.binary), "CRONIUM_RUNNER_ROOT": str(self.root)}

    def heard(self) -> list[str]:
        """The kinds of all frames so far, HELLO and PING excepted."""
        kinds = self._heard.read_text().split() if self._heard.exists() else []
        return [kind for kind in kinds if kind != "HELLO"]


@pytest.fixture
def impostor(tmp_path: Path, carrier: Path) -> "Callable[..., Impostor]":
    """`impostor((kind, body), …)`: answers of an agent that isn't ours."""
    return lambda *answers: Impostor(tmp_path / "impostor", carrier, [(int(kind), body) for kind, body in answers])


@pytest.fixture
def seven_hosts(tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteHost]:
    """One server that answers at seven addresses."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib", options=OPTIONS) as made:
        yield made
