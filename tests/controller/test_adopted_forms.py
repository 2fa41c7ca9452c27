"""Forms whose owner has exchanged libraries and recorded that: what a deployment and a verification make of them."""

import base64
import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import signing
from cronium_controller.binary_trust import NAMESPACE
from cronium_controller.deploy.verification import EXCHANGED, State
from cronium_controller.deployments import PRESENT
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners
from remote_host import RemoteHost, collect
from runner_process import with_digest

pytestmark = pytest.mark.sshd
LIBRARY = "_internal/libc.so.6"
PROGRAM = "cronium-runner"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def binary(carrier: Path, tmp_path: Path) -> Path:
    """A runner of the checkout whose form has a library, and a list of contents with digests."""
    files = {PROGRAM: carrier.read_bytes(), LIBRARY: b"as it was built"}
    modes = {PROGRAM: "0700", LIBRARY: "0600"}
    lines = ["cronium-runner bundle 1", "3.0.0 0123456789ab c t"]
    lines += [f"f {modes[path]} {len(content)} {path}" for path, content in files.items()]
    lines += [f"s {digest(content)} {path}" for path, content in files.items()]
    listed = "".join(f"{line}\n" for line in lines)
    written = files | {"contents": listed.encode()}
    puts = ""
    for name, content in written.items():
        puts += f'echo {base64.b64encode(content).decode()} | base64 -d >"$2/{name}"\n'
        puts += f'chmod {modes.get(name, "0600")} "$2/{name}"\n'
    path = tmp_path / "dist" / f"cronium-runner-3.0.0-linux-{os.uname().machine}"
    path.parent.mkdir()
    install = f'if [ "$1" = install ]; then\nset -e\nmkdir -m 700 "$2" "$2/_internal"\n{puts}exit\nfi\n'
    path.write_text(f'#!/bin/sh\n{install}exec sh {shlex.quote(str(carrier))} "$@"\nexit\n{listed}')
    return with_digest(path)


class Adopted(NamedTuple):
    """A form on a host. `exchange` puts another library there and records it, or records something else."""

    form: Path

    def exchange(self, recorded: bytes | None = None, path: str = LIBRARY) -> None:
        (self.form / path).write_bytes(b"exchanged")
        content = recorded or b"exchanged"
        with (self.form / "contents").open("a") as file:
            file.write(f"a {len(content)} {digest(content)} {path}\n")

    @property
    def library(self) -> bytes:
        return (self.form / LIBRARY).read_bytes()


async def deployed(remote: RemoteHost, binary: Path) -> Adopted:
    async with remote.controller(runners=Runners(str(binary), root=str(remote.root))) as controller:
        return Adopted(Path((await controller.deploy(remote.host)).path).parent)


async def test_deployment_leaves_an_adopted_form(remote: RemoteHost, binary: Path) -> None:
    adopted = await deployed(remote, binary)
    adopted.exchange()
    async with remote.controller(runners=Runners(str(binary), root=str(remote.root))) as controller:
        found = await controller.deploy(remote.host)
        assert (found.method, found.uploaded_bytes) == (PRESENT, 0)
        job = Job(load(remote.script("echo works")))
        assert (await collect(await controller.submit(remote.host, job)))["stdout"] == b"works\n"
    assert adopted.library == b"exchanged"


def not_recorded(adopted: Adopted) -> None:
    (adopted.form / LIBRARY).write_bytes(b"exchanged")


def other_list(adopted: Adopted) -> None:
    adopted.exchange()
    listed = adopted.form / "contents"
    listed.write_text(listed.read_text().replace(" c t\n", " c u\n"))


DAMAGES: dict[str, Callable[[Adopted], None]] = {
    "not-recorded": not_recorded,
    "other-digest": lambda adopted: adopted.exchange(b"something else"),
    "other-list": other_list,
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_deployment_mends_what_was_not_adopted(remote: RemoteHost, binary: Path, name: str) -> None:
    adopted = await deployed(remote, binary)
    DAMAGES[name](adopted)
    async with remote.controller(runners=Runners(str(binary), root=str(remote.root))) as controller:
        [form] = (await controller.verify(remote.host)).forms
        assert form.state is State.DIFFERS
        assert (await controller.deploy(remote.host)).uploaded_bytes > 0
        assert (await controller.verify(remote.host)).agrees
    assert adopted.library == b"as it was built"


@signing.needs_ssh_keygen
async def test_signers_leave_no_adopted_form(remote: RemoteHost, binary: Path, tmp_path: Path) -> None:
    key = signing.key(tmp_path)
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"release {signing.public(key)}\n")
    text = signing.signature(key, binary.read_bytes(), NAMESPACE)
    binary.with_name(f"{binary.name}.sig").write_text(text)
    adopted = await deployed(remote, binary)
    adopted.exchange()
    runners = Runners(str(binary), root=str(remote.root), signers=str(signers))
    async with remote.controller(runners=runners) as controller:
        assert (await controller.deploy(remote.host)).uploaded_bytes > 0
    assert adopted.library == b"as it was built"


async def test_verification_tells_adopted_from_changed(remote: RemoteHost, binary: Path) -> None:
    adopted = await deployed(remote, binary)
    adopted.exchange()
    where = ("--host", remote.server.target)
    async with remote.controller(runners=Runners(str(binary), root=str(remote.root))) as controller:
        found = await controller.verify(remote.host)
        assert not found.agrees, "it is not what was deployed"
        [form] = found.forms
        assert (form.state, [(one.path, one.what) for one in form.differences]) == (
            State.ADOPTED, [(LIBRARY, EXCHANGED)]
        )  # fmt: skip
        remote.binary = binary
        done = remote.cronium("deploy", *where, "--verify")
        assert (done.returncode, done.stdout) == (1, b"")
        sentence = f"{adopted.form} is adopted: its owner has exchanged {LIBRARY}; all else is as it was built"
        assert f"{sentence} [install.adopted]" in done.stderr.decode()
        (adopted.form / LIBRARY).chmod(0o622)
        [form] = (await controller.verify(remote.host)).forms
        assert form.state is State.DIFFERS, "another account can write it"
        (adopted.form / LIBRARY).chmod(0o600)
        (adopted.form / "_internal" / "more").touch()
        [form] = (await controller.verify(remote.host)).forms
        assert form.state is State.DIFFERS
        (adopted.form / "_internal" / "more").unlink()
        adopted.exchange(path=PROGRAM)
        [form] = (await controller.verify(remote.host)).forms
        assert form.state is State.DIFFERS, "the program is no library"
