"""The real binary onto a host: once, verified, whole; or one sentence and nothing left there."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cronium_controller.errors import ControllerError
from cronium_controller.install import Deployment
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners
from kinds import BOTH
from remote_host import RemoteHost, collect
from runner_process import with_digest

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
NewHost = Callable[..., RemoteHost]


async def deployed(host: RemoteHost, runners: Runners | None = None) -> Deployment:
    async with host.controller(runners=runners) as controller:
        return await controller.deploy(host.host)


async def works(host: RemoteHost) -> bytes:
    async with host.controller() as controller:
        execution = await controller.submit(host.host, Job(load(host.script("echo works"))))
        printed = await collect(execution)
        assert (await execution.result()).exit_code == 0, printed
        return printed["stdout"]


async def failed(host: RemoteHost, runners: Runners | None = None) -> ControllerError:
    with pytest.raises(ControllerError) as error:
        await deployed(host, runners)
    assert error.value.message.startswith(f"{host.server.target}: ")
    assert "\n" not in error.value.message
    if host.root.exists():
        assert [name for name in os.listdir(host.root) if not name[0].isdigit()] == []
    return error.value


def sftp_sessions(host: RemoteHost) -> int:
    return host.server.count_in_log("Starting session: subsystem 'sftp'") + host.server.count_in_log("forced-command")


async def test_the_binary_travels_once(fresh: RemoteHost) -> None:
    first = await deployed(fresh)
    assert (first.method, first.uploaded_bytes) == ("sftp", fresh.binary.stat().st_size)
    assert Path(first.path).is_file()
    assert Path(first.path).parent.parent.stat().st_mode & 0o777 == 0o700
    assert sftp_sessions(fresh) == 1
    before = Path(first.path).stat()
    second = await deployed(fresh)
    after = Path(second.path).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (second.path, second.uploaded_bytes, second.method) == (first.path, 0, "present")
    assert sftp_sessions(fresh) == 1
    assert await works(fresh) == b"works\n"
    assert sftp_sessions(fresh) == 1


async def test_the_first_job_brings_the_runner_along(fresh: RemoteHost) -> None:
    assert await works(fresh) == b"works\n"
    assert sftp_sessions(fresh) == 1
    assert await works(fresh) == b"works\n"
    assert sftp_sessions(fresh) == 1


async def test_without_sftp_it_goes_through_cat(new_host: NewHost, tmp_path: Path) -> None:
    host = new_host(root=tmp_path / "root", options=["Subsystem nothing internal-sftp"])
    done = await deployed(host)
    assert (done.method, done.uploaded_bytes) == ("cat", host.binary.stat().st_size)
    assert await works(host) == b"works\n"


async def test_what_cut_deployments_have_left_goes_after_an_hour(fresh: RemoteHost) -> None:
    """Whoever is cut off in the middle can remove nothing any more; another one may be at it now."""
    fresh.root.mkdir(mode=0o700)
    left = {age: [fresh.root / f".upload-{age}", fresh.root / f"0.1.0-x.{age}.tmp"] for age in ("old", "new")}
    for upload, folder in left.values():
        upload.write_bytes(b"half")
        folder.mkdir()
        (folder / "cronium-runner").touch()
    for path in left["old"]:
        os.utime(path, (0, 0))
    assert await works(fresh) == b"works\n"
    assert [path.exists() for path in left["old"]] == [False, False]
    for path in left["new"]:
        assert path.exists()
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("damage", ["gone", "cut", "not executable"])
async def test_a_damaged_installation_is_replaced(fresh: RemoteHost, damage: str) -> None:
    done = await deployed(fresh)
    runner = Path(done.path)
    match damage:
        case "gone":
            runner.unlink()
        case "cut":
            os.truncate(runner, 1000)
        case _:
            runner.chmod(0o600)
    assert await works(fresh) == b"works\n"


def damage_client(host: RemoteHost) -> Path:
    """Empties the helper client on the host, and has the controller forget all that it knows of the host."""
    [client] = host.root.glob("*/helpers/client")
    client.write_bytes(b"")
    shutil.rmtree(host.remembered)
    return client


@pytest.mark.parametrize(
    ("word", "has_digests"), [("run", True), ("deploy", True), ("doctor", True), ("deploy", False)]
)
def test_emptied_helper_is_repaired(word: str, has_digests: bool, fresh: RemoteHost) -> None:
    """With a list of 0.1.0, which has no digests, too. A job with it would lose its output and succeed."""
    script = fresh.script("cronium.output answer 42")
    assert fresh.run_json(script)["output"] == {"answer": "42"}
    if not has_digests:
        [listing] = fresh.root.glob("*/contents")
        lines = [line for line in listing.read_text().splitlines(keepends=True) if not line.startswith("s ")]
        listing.write_text("".join(lines))
    client = damage_client(fresh)
    if word == "run":
        assert fresh.run_json(script)["output"] == {"answer": "42"}
    else:
        done = fresh.cronium(word, "--host", fresh.server.target)
        assert done.returncode == 0, done
        assert b"is there" not in done.stdout
    assert client.stat().st_size > 0
    assert fresh.run_json(script)["output"] == {"answer": "42"}


def test_damaged_runner_is_not_rolled_back_to(fresh: RemoteHost) -> None:
    """There is no binary here to repair it with, so it is refused and the one in use stays."""
    assert fresh.run(fresh.script("true")).returncode == 0
    [usual] = fresh.root.iterdir()
    older = usual.with_name(f"0.1.0-{'0' * 12}")
    shutil.copytree(usual, older, symlinks=True)
    (older / "helpers/client").write_bytes(b"")
    os.utime(older, (0, 0))
    done = fresh.cronium("deploy", "--host", fresh.server.target, "--rollback")
    assert done.returncode == 125
    assert b"helpers/client" in done.stderr
    assert done.stderr.rstrip().endswith(b"[install.damaged]")
    assert fresh.run_json(fresh.script("cronium.output answer 42"))["output"] == {"answer": "42"}


async def test_changed_files_of_the_installed_form_are_found_and_replaced(fresh: RemoteHost) -> None:
    """One byte in a library, its size as before: it would start, and the runner's own look at sizes sees nothing."""
    done = await deployed(fresh)
    assert await works(fresh) == b"works\n"
    assert await works(fresh) == b"works\n"
    assert (await deployed(fresh)).uploaded_bytes == 0, "running it changes none of its files"
    library = max((Path(done.path).parent / "_internal").glob("*.so*"), key=lambda path: path.stat().st_size)
    good = library.read_bytes()
    library.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert (await deployed(fresh)).uploaded_bytes == fresh.binary.stat().st_size
    assert library.read_bytes() == good
    assert os.listdir(fresh.root) == [Path(done.path).parent.name]
    assert await works(fresh) == b"works\n"


async def test_what_arrives_cut_short_is_noticed(new_host: NewHost, tmp_path: Path) -> None:
    """A forced command whose `cat` loses the end, as a broken proxy or quota does."""
    (tmp_path / "bin").mkdir()
    cat = tmp_path / "bin" / "cat"
    cat.write_text("#!/bin/sh\nhead -c 100000\nexec /bin/cat >/dev/null\n")
    cat.chmod(0o755)
    host = new_host(
        root=tmp_path / "root",
        options=["Subsystem nothing internal-sftp"],
        environment={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
    )
    error = await failed(host)
    assert error.code == "deploy.digest_mismatch"
    assert error.exit_status == 125


@pytest.mark.parametrize(
    ("said", "code"), [("Linux riscv64", "deploy.unsupported"), ("Darwin arm64", "deploy.unsupported")]
)
async def test_a_machine_without_a_runner_is_told_apart(
    new_host: NewHost, tmp_path: Path, said: str, code: str
) -> None:
    (tmp_path / "bin").mkdir()
    uname = tmp_path / "bin" / "uname"
    uname.write_text(f"#!/bin/sh\necho {said}\n")
    uname.chmod(0o755)
    host = new_host(root=tmp_path / "root", environment={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    error = await failed(host)
    assert error.code == code
    assert said.split()[0] in error.message or said.split()[1] in error.message
    assert sftp_sessions(host) == 0


@pytest.fixture
def tiny_disk(tmp_path: Path, as_root: None) -> Iterator[Path]:
    """Two megabytes: less than the binary."""
    path = tmp_path / "tiny"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", path], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("way", ["sftp", "cat"])
async def test_a_full_disk_is_said_and_cleaned_up(new_host: NewHost, tiny_disk: Path, way: str) -> None:
    host = new_host(root=tiny_disk / "root", options=[] if way == "sftp" else ["Subsystem nothing internal-sftp"])
    error = await failed(host)
    assert error.code == "deploy.failed"
    assert os.listdir(tiny_disk / "root") == []
    if way == "cat":
        assert "No space left" in error.message


async def test_a_folder_that_cannot_be_made_is_named(new_host: NewHost, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = await failed(new_host(root=tmp_path / "file" / "root"))
    assert error.code == "install.unusable"
    assert str(tmp_path / "file") in error.message, error.message


async def test_a_root_with_a_space_and_quotes_is_fine(new_host: NewHost, tmp_path: Path) -> None:
    host = new_host(root=tmp_path / "it's a $HOME root")
    assert await works(host) == b"works\n"


async def test_a_binary_that_does_not_start_there_says_why(fresh: RemoteHost, tmp_path: Path) -> None:
    broken = tmp_path / f"cronium-runner-9.9.9-linux-{os.uname().machine}"
    broken.write_text("#!/bin/sh\necho this machine is too old >&2\nexit 1\n")
    with_digest(broken)
    error = await failed(fresh, Runners(str(broken), root=str(fresh.root), pauses=(0.05,)))
    assert error.code == "deploy.failed"
    assert "this machine is too old" in error.message


@BOTH
async def test_many_deploy_at_once_and_all_work(fresh: RemoteHost) -> None:
    """Four processes' worth of controllers, one empty host."""
    done = await asyncio.gather(*[deployed(fresh) for _ in range(4)])
    assert len({each.path for each in done}) == 1
    assert await works(fresh) == b"works\n"
    assert [name for name in os.listdir(fresh.root) if name.startswith(".")] == []


@BOTH
@pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh", "dash"])
async def test_any_login_shell_will_do(fresh: RemoteHost, shell: str) -> None:
    """sshd gives commands to the login shell as `SHELL -c COMMAND`; a forced command can do the same with another."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} on this machine")
    fresh.server.stop()
    fresh.server._options.append(f'ForceCommand exec {found} -c "$SSH_ORIGINAL_COMMAND"')
    fresh.server._options.append("Subsystem nothing internal-sftp")
    fresh.server.start()
    assert (await deployed(fresh)).method == "cat"
    assert await works(fresh) == b"works\n"


def test_the_command_goes_to_a_real_second_version_and_back(new_host: NewHost, tmp_path: Path) -> None:
    """Two frozen binaries side by side on one host: which of them a job's runner is, its own process tells."""
    host = new_host(root=tmp_path / "root")
    later = tmp_path / f"cronium-runner-9.9.9-linux-{os.uname().machine}"
    later.write_bytes(host.binary.read_bytes() + b"later")  # what is behind its archive is nothing to it
    later.chmod(0o755)
    with_digest(later)
    version = host.binary.name.split("-")[2]
    where = ("--host", host.server.target)
    told = host.script('tr "\\0" "\\n" </proc/$PPID/cmdline | head -1; readlink /proc/$PPID/exe\n')

    (host.folder / "hosts.yaml").write_text(f"hosts:\n  web01: {host.server.target}\n")

    def runner_of_a_job() -> str:
        done = host.run("--binary", later, told)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def listed() -> tuple[str, bool]:
        done = host.cronium("hosts", "--hosts", host.folder / "hosts.yaml", "--json")
        seen = json.loads(done.stdout)["runner"]
        return seen["folder"], seen["chosen"]

    assert host.cronium("deploy", *where).returncode == 0
    older, *rest = os.listdir(host.root)
    assert rest == []
    os.utime(host.root / older, (0, 0))  # some file systems know no less than a second
    assert host.cronium("deploy", *where, "--binary", later).returncode == 0
    (newer,) = set(os.listdir(host.root)) - {older}
    assert newer in runner_of_a_job()
    assert listed() == (newer, False)
    back = host.cronium("deploy", *where, "--binary", later, "--rollback")
    assert (back.returncode, back.stderr) == (0, b"")
    assert f"{older}/cronium-runner is there and used from now on" in back.stdout.decode()
    assert older in runner_of_a_job()
    assert listed() == (older, True)
    further = host.cronium("deploy", *where, "--binary", later, "--rollback")
    assert further.returncode == 125
    assert further.stderr.rstrip().endswith(b"[deploy.no_version]")
    assert host.cronium("deploy", *where, "--binary", later, "--version", "9.9.9").returncode == 0
    assert newer in runner_of_a_job()
    assert host.cronium("deploy", *where, "--binary", later, "--version", version).returncode == 0
    assert older in runner_of_a_job()
    assert host.cronium("deploy", *where, "--binary", later).returncode == 0, "our own again"
    assert newer in runner_of_a_job()
    assert listed() == (newer, False)
    history = host.cronium("deploy", "--history", "--json").stdout.splitlines()
    assert [json.loads(line)["outcome"] for line in history] == [
        "present", "chosen", "chosen", "rolled back", "installed", "installed",
    ]  # fmt: skip
    assert sorted(os.listdir(host.root)) == sorted([older, newer])
