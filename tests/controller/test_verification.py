"""What is made of a host's answer about its installed forms, however odd it is."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from carriers import runner
from cronium_controller.deploy.installed_forms import OTHER_ROOTS, is_form
from cronium_controller.deploy.known_builds import KnownBuild, KnownBuilds, by_folder, carried_build, read_build
from cronium_controller.deploy.verification import Tree, compared, read_answer
from cronium_controller.errors import DeployError
from cronium_controller.runners import Runners, read_binary
from cronium_controller.store import Store
from cronium_runner import location
from cronium_runner.wire.names import INSTALL_ROOT
from remote_host import RemoteHost
from runner_process import with_digest

A, B = "a" * 64, "b" * 64
BUILD = KnownBuild(A, "1.0.0", "x86_64", "0" * 12, {"contents": A, "_internal/x": B}, {"helpers/bin/c": "../client"})
FOLDERS = ".\n./_internal\n./helpers\n./helpers/bin\n"
LINKS = "../client\n./helpers/bin/c\n"
FILES = f"{A}  ./contents\n{B}  ./_internal/x\n"


def differing(digests: str = FILES, links: str = LINKS, folders: str = FOLDERS, *rest: str) -> dict[str, str]:
    specials, writable = (*rest, "", "")[:2]
    found, _ = compared(BUILD, read_answer([digests, links, folders, specials, writable]))
    return {one.path: one.what for one in found}


def test_a_form_as_it_was_built_differs_in_nothing() -> None:
    assert differing() == {}
    assert differing(FILES.replace("  ./", " *./")) == {}


def test_compiled_helpers_are_left_out_whatever_the_umask_was() -> None:
    folder = "./helpers/python/__pycache__"
    compiled = f"{folder}/cronium.cpython-311.pyc"
    tree = read_answer(
        [f"{FILES}{A}  {compiled}\n", LINKS, f"{FOLDERS}./helpers/python\n{folder}\n", "", f"{folder}\n{compiled}\n"]
    )
    tree.folders.discard("helpers/python")  # this build has no such folder
    assert compared(BUILD, tree) == ([], [compiled.removeprefix("./")])


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        ((FILES.replace(B, A),), "_internal/x"),
        ((FILES + f"{A}  ./_internal/x\n",), "."),  # the same twice: which one is true?
        ((FILES + "no digest\n",), "."),
        ((FILES + f"\\{A}  ./a\\nb\n",), "a\\nb"),
        ((FILES + f"{A}  /etc/passwd\n",), "."),
        ((FILES, LINKS + "odd\n"), "."),
        ((FILES, LINKS.replace("../client", "/tmp/client")), "helpers/bin/c"),
        ((FILES, "", FOLDERS), "helpers/bin/c"),
        ((FILES, LINKS, FOLDERS + "./_internal/more\n"), "_internal/more"),
        ((FILES, LINKS, FOLDERS, "./_internal/fifo\n"), "_internal/fifo"),
        ((FILES, LINKS, FOLDERS, "", "./_internal\n"), "_internal"),
        ((FILES, LINKS, FOLDERS, "", ".\n"), "."),
        (("", "", ".\n"), "contents"),
    ],
)
def test_what_is_wrong_is_named(answer: tuple[str, ...], path: str) -> None:
    assert path in differing(*answer)


def test_names_are_shown_without_controls() -> None:
    assert list(differing(FILES + f"{A}  ./\x1b[2Jx\udc80\n")) == ["\\x1b[2Jx\\x80"]


def test_nothing_said_is_nothing_there() -> None:
    found, _ = compared(BUILD, Tree())
    assert {one.what for one in found} == {"missing"}


def test_the_roots_are_those_that_a_runner_chooses() -> None:
    known = [INSTALL_ROOT, *OTHER_ROOTS]
    chosen = [f"/home/{root}" if not root.startswith("/") else root.replace("$uid", "7") for root in known]
    assert sorted(chosen) == sorted(location.roots_of(7, "/home"))


def test_which_names_are_those_of_forms() -> None:
    assert is_form(f"0.2.0-{'a' * 12}")
    assert not is_form(f"source-{'a' * 12}"), "helpers of runners from source"
    assert not any(map(is_form, (".upload-0123", f"0.2.0-{'a' * 12}.tmp", "..", f"a\n-{'a' * 12}", os.sep)))


LISTED = f"cronium-runner bundle 1\n1.0.0 0123456789ab c t\nl ../client bin/c\nf 0600 3 a\ns {A} a\n"


async def test_an_uploaded_binary_is_remembered_by_the_list_that_it_carries(tmp_path: Path) -> None:
    path = tmp_path / "cronium-runner-1.0.0-linux-aarch64"  # whatever this machine is: it is not executed
    path.write_bytes(b"\x7fELF\0" + LISTED.encode() + b"\x28\xb5\x2f\xfd")
    binary = read_binary(with_digest(path))
    store = Store(tmp_path / "controller.db")
    await KnownBuilds(store).note_uploaded(binary)
    store.close()
    store = Store(tmp_path / "controller.db")
    builds = by_folder(KnownBuilds(store).all())
    store.close()
    assert set(builds) == {f"1.0.0-{binary.sha256[:12]}", "1.0.0-0123456789ab"}
    for build in builds.values():
        assert build.files == {"a": A, "contents": hashlib.sha256(LISTED.encode()).hexdigest()}
        assert build.links == {"bin/c": "../client"}
    path.write_bytes(path.read_bytes() + b"changed meanwhile")
    assert carried_build(binary) is None


def test_a_binary_that_tells_nothing_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cronium-runner-1.0.0-linux-x86_64"
    path.write_text("#!/bin/sh\necho this machine is too old >&2\nexit 1\n")
    with pytest.raises(DeployError, match=r"cannot be told here: this machine is too old$") as refused:
        read_build(read_binary(with_digest(path)))
    assert refused.value.code == "install.unknown"


@pytest.mark.sshd
async def test_an_older_form_is_compared_when_its_binary_is_gone(
    remote: RemoteHost, carrier: Path, tmp_path: Path
) -> None:
    older = runner(carrier, tmp_path / "older", "1.0.0")
    remote.binary = runner(carrier, tmp_path / "newer", "2.0.0")
    async with remote.controller(runners=Runners(str(older), root=str(remote.root))) as controller:
        form = Path((await controller.deploy(remote.host)).path).parent
        assert (await controller.verify(remote.host)).agrees
    older.unlink()
    where = ("--host", remote.server.target)
    assert remote.cronium("deploy", *where).returncode == 0
    done = remote.cronium("deploy", *where, "--verify")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(line.split("/")[-1].split("-")[0] for line in done.stdout.decode().splitlines()) == ["1.0.0", "2.0.0"]
    program = form / "cronium-runner"
    program.write_bytes(program.read_bytes().replace(b"1.0.0", b"1.0.1"))
    done = remote.cronium("deploy", *where, "--host", "127.0.0.1:1", "--verify", "--json")
    assert done.returncode == 255, "none of them agrees"
    told = {line["host"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert told["127.0.0.1:1"]["error"]["code"] == "host.unreachable"
    forms = {each["version"]: each for each in told[remote.server.target]["forms"]}
    assert {version: each["state"] for version, each in forms.items()} == {"1.0.0": "differs", "2.0.0": "agrees"}
    assert forms["1.0.0"]["differences"] == [{"path": "cronium-runner", "what": "changed"}]
