"""Files of the installed form that are not as they were installed: no job runs with them, and none loses its output."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner_process import Host

pytestmark = pytest.mark.frozen

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "cronium.output answer 42\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, binary: Path) -> Path:
    """An installed form that no test changes."""
    folder = tmp_path_factory.mktemp("damage")
    host = Host(folder, folder / "root")
    host.executable = (str(binary),)
    assert host.run("version").returncode == 0
    [found] = (folder / "root").iterdir()
    return found


@pytest.fixture
def host(tmp_path: Path, installed: Path) -> Iterator[Host]:
    """A host with an installed form of its own, in `installed`, that scripts are run by directly."""
    made = Host(tmp_path, tmp_path / "root")
    (tmp_path / "root").mkdir(mode=0o700)
    copy = tmp_path / "root" / installed.name
    shutil.copytree(installed, copy, symlinks=True)
    made.executable = (str(copy / "cronium-runner"),)
    assert made.run("version").returncode == 0
    yield made
    made.check_nothing_left()


def form(host: Host) -> Path:
    return Path(host.executable[0]).parent


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def other_of_same_size(path: Path) -> None:
    """Also with its old times: what was written is seen all the same."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def other_before_the_list(path: Path) -> None:
    """As in a copy that wrote the list of contents last: only the time of the last write tells."""
    other_of_same_size(path)
    os.utime(path, ns=(0, 0))
    contents = path.parents[1] / "contents"
    contents.write_bytes(contents.read_bytes())


def opened(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o022)


@pytest.mark.parametrize("damage", [emptied, other_of_same_size, opened, Path.unlink])
@pytest.mark.parametrize("name", ["helpers/client", "helpers/python/cronium.py", "_internal/libssl.so.3"])
def test_damaged_form_runs_no_job(host: Host, name: str, damage: Callable[[Path], None]) -> None:
    script = host.script(OUTPUT)
    assert host.run_json(script)["output"] == {"answer": "42"}
    damage(form(host) / name)
    result = host.run_json(script)
    assert (result["state"], result["exit status"], result["error"]["code"]) == ("rejected", 125, "install.damaged")
    assert name in result["error"]["message"]
    for command in ("agent", "version"):
        done = host.run(command)
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"[install.damaged]" in done.stderr
    told = host.run("doctor")
    assert told.returncode != 0
    assert name.encode() in told.stdout


def test_doctor_hashes_every_file(host: Host) -> None:
    assert b"each by its SHA-256" in host.run("doctor").stdout


def test_one_file_binary_repairs_what_it_installed(host: Host, binary: Path) -> None:
    script = host.script(OUTPUT)
    client = form(host) / "helpers/client"
    built = client.read_bytes(), client.stat().st_mode
    for damage in (emptied, other_of_same_size, other_before_the_list, opened):
        damage(client)
        host.executable = (str(binary),)
        assert host.run_json(script)["output"] == {"answer": "42"}
        [found] = (host.folder / "root").iterdir()
        host.executable = (str(found / "cronium-runner"),)
        assert (client.read_bytes(), client.stat().st_mode) == built


def test_one_file_binary_repairs_the_list_of_contents(host: Host, binary: Path) -> None:
    contents = form(host) / "contents"
    listed = contents.read_bytes()
    for damaged in (b"", listed.replace(b"l ../client ", b"l ../cliant ", 1), listed[:-1]):
        contents.write_bytes(damaged)
        host.executable = (str(binary),)
        assert host.run("version").returncode == 0
        assert contents.read_bytes() == listed


def test_one_file_binary_repairs_links(host: Host, binary: Path) -> None:
    link = next(path for path in sorted((form(host) / "helpers/bin").iterdir()) if path.is_symlink())
    built = link.readlink()
    link.unlink()
    link.symlink_to("/bin/true")
    host.executable = (str(binary),)
    assert host.run("version").returncode == 0
    assert link.readlink() == built


def test_helper_changed_under_an_agent_is_noticed(host: Host) -> None:
    payload = host.payload(OUTPUT)
    with host.agent() as agent:
        assert agent.finished(agent.start(payload, "before"))["output"] == {"answer": "42"}
        content = (form(host) / "helpers/client").read_bytes()
        emptied(form(host) / "helpers/client")
        channel = agent.submit(payload, "emptied")
        refused = agent.finished(channel)
        assert (refused["state"], refused["error"]["code"]) == ("rejected", "install.damaged")
        (form(host) / "helpers/client").write_bytes(content)
        assert agent.finished(agent.start(payload, "after"))["output"] == {"answer": "42"}


def test_copied_form_is_hashed_once(host: Host) -> None:
    """A backup that was put back has other times and the right content: it works, and the next start finds it so."""
    contents = form(host) / "contents"
    client = form(host) / "helpers/client"
    client.write_bytes(client.read_bytes())
    assert host.run("version").returncode == 0
    stamped = contents.stat().st_mtime_ns
    assert client.stat().st_mtime_ns == stamped
    assert host.run("version").returncode == 0
    assert contents.stat().st_mtime_ns == stamped


def test_form_without_digests_is_checked_by_size(host: Host) -> None:
    """As 0.1.0 wrote its list."""
    contents = form(host) / "contents"
    lines = [line for line in contents.read_text().splitlines(keepends=True) if not line.startswith("s ")]
    contents.write_text("".join(lines))
    assert host.run_json(host.script(OUTPUT))["output"] == {"answer": "42"}
    emptied(form(host) / "helpers/client")
    assert host.run_json(host.folder / "script.sh")["error"]["code"] == "install.damaged"


def test_form_that_others_could_exchange_is_refused(host: Host) -> None:
    (host.folder / "root").chmod(0o777)
    done = host.run("agent")
    assert done.returncode == 125
    assert b"[install.unusable]" in done.stderr
    assert stat.S_IMODE((host.folder / "root").stat().st_mode) == 0o777
