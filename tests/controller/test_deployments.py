"""Runners on hosts, in versions: attempts, what is remembered for how long, damage, and the way back."""

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from carriers import runner
from cronium_controller import deployments
from cronium_controller.deployments import FAILED, INSTALLED, PRESENT, ROLLED_BACK, Known, Made
from cronium_controller.dispatch import Controller
from cronium_controller.errors import DeployError
from cronium_controller.hosts import Host, parse_host
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners
from remote_host import RemoteHost, collect
from runner_process import with_digest
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.sshd

SIZE = 400_000
QUICK = (0.02, 0.05)
WAYS = pytest.mark.parametrize("way", ["sftp", "cat"])


def restart(remote: RemoteHost, *options: str) -> None:
    """Starts the server with these options."""
    remote.server.stop()
    remote.server._options = list(options)
    remote.server.start()


def without_sftp(way: str) -> list[str]:
    """The server's options where it has none, which is where an upload has to go the other way."""
    return ["Subsystem nothing internal-sftp"] if way == "cat" else []


def left(remote: RemoteHost) -> list[str]:
    """What is below the install root."""
    return sorted(os.listdir(remote.root)) if remote.root.exists() else []


def sessions(remote: RemoteHost) -> int:
    return remote.server.count_in_log("Starting session")


async def runs(controller: Controller, remote: RemoteHost, host: Host | None = None) -> Made | None:
    """Runs a job; what was deployed for it."""
    before = controller.deployments.history(1)
    execution = await controller.submit(host or remote.host, Job(load(remote.script("echo works"))))
    assert (await collect(execution))["stdout"] == b"works\n"
    assert (await execution.result()).exit_code == 0
    after = controller.deployments.history(1)
    return after[0] if after != before else None


def known(controller: Controller, remote: RemoteHost) -> list[Known]:
    return controller.deployments.known(remote.host, str(remote.root))


def make_older(controller: Controller, seconds: float) -> None:
    """As if everything that is known of runners had been learned earlier."""
    set_back = "verified_at = verified_at - :by, checked_at = checked_at - :by"
    controller.store.database.write(f"UPDATE runner_cache SET {set_back}", {"by": seconds})


@WAYS
async def test_an_upload_that_is_cut_is_tried_again_and_leaves_nothing(
    remote: RemoteHost, carrier: Path, tmp_path: Path, way: str
) -> None:
    restart(remote, *without_sftp(way))
    binary = runner(carrier, tmp_path / "dist", size=SIZE)
    runners = Runners(str(binary), root=str(remote.root), pauses=QUICK)
    async with TcpProxy(remote.server.port) as proxy, remote.controller(runners=runners) as controller:
        host = parse_host(f"127.0.0.1:{proxy.port}", identity=str(remote.server.identity))
        proxy.cut_after(SIZE // 2, is_sent=True)
        made = await runs(controller, remote, host)
        assert proxy.cuts == 1
        assert made is not None
        assert (made.outcome, made.attempts, made.method, made.uploaded_bytes) == (INSTALLED, 2, way, SIZE)
        assert (made.version, made.architecture, made.error) == ("1.0.0", os.uname().machine, None)
        assert left(remote) == [Runners(str(binary)).for_machine(os.uname().machine, "").folder]


@WAYS
async def test_an_upload_that_always_fails_is_given_up_after_three_attempts(
    remote: RemoteHost, carrier: Path, tmp_path: Path, way: str
) -> None:
    restart(remote, *without_sftp(way), 'ForceCommand ulimit -f 64; eval "$SSH_ORIGINAL_COMMAND"')
    runners = Runners(str(runner(carrier, tmp_path / "dist", size=SIZE)), root=str(remote.root), pauses=QUICK)
    async with remote.controller(runners=runners) as controller:
        with pytest.raises(DeployError):
            await controller.deploy(remote.host)
        assert left(remote) == []
        (made,) = controller.deployments.history()
        assert (made.outcome, made.attempts, made.uploaded_bytes) == (FAILED, 3, 0)
        assert made.error is not None
        assert remote.server.target in made.error
        assert known(controller, remote) == []


async def test_waits_as_long_as_it_is_told_to(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    broken = tmp_path / "dist" / f"cronium-runner-1.0.0-linux-{os.uname().machine}"
    broken.write_text("#!/bin/sh\nexit 1\n")
    with_digest(broken)
    began = time.monotonic()
    async with remote.controller(runners=Runners(str(broken), root=str(remote.root), pauses=(0.3, 0.6))) as controller:
        with pytest.raises(DeployError):
            await controller.deploy(remote.host)
    assert time.monotonic() - began >= 0.9
    assert Runners().pauses == (2.0, 4.0)


async def test_a_known_host_costs_one_session_whatever_the_age(
    remote: RemoteHost, carrier: Path, tmp_path: Path
) -> None:
    """Fresh, an hour old, a day old: the agent's own session, and nothing is uploaded."""
    runners = Runners(str(runner(carrier, tmp_path / "dist")), root=str(remote.root), pauses=QUICK)
    async with remote.controller(runners=runners) as controller:
        assert (await runs(controller, remote) or pytest.fail("not deployed")).outcome == INSTALLED
        (first,) = known(controller, remote)
        assert first.tree_sha256 is not None
    for age in (0.0, deployments.CHECK_SECONDS + 1, deployments.VALID_SECONDS + 1):
        async with remote.controller(runners=runners) as controller:
            make_older(controller, age)
            (before,) = known(controller, remote)
            count = sessions(remote)
            assert await runs(controller, remote) is None
            assert sessions(remote) == count + 1
            (after,) = known(controller, remote)
            assert after.is_valid(time.time())
            assert (after.checked_at != before.checked_at) == (age > 0)
            assert (after.verified_at != before.verified_at) == (age > deployments.VALID_SECONDS)


async def test_what_was_changed_on_the_host_is_found_and_replaced(
    remote: RemoteHost, carrier: Path, tmp_path: Path
) -> None:
    """By a start when the day is over, and by `deploy` at once; though it starts and has the right size."""
    runners = Runners(str(runner(carrier, tmp_path / "dist")), root=str(remote.root), pauses=QUICK)
    async with remote.controller(runners=runners) as controller:
        path = Path((await controller.deploy(remote.host)).path)
    good = path.read_bytes()
    path.write_bytes(good.replace(b"# 1.0.0", b"# 6.6.6"))
    async with remote.controller(runners=runners) as controller:
        assert await runs(controller, remote) is None, "what was verified counts for a day"
    async with remote.controller(runners=runners) as controller:
        make_older(controller, deployments.VALID_SECONDS + 1)
        made = await runs(controller, remote)
        assert made is not None
        assert made.outcome == INSTALLED
        assert path.read_bytes() == good
        path.write_bytes(good.replace(b"# 1.0.0", b"# 6.6.6"))
        assert (await controller.deploy(remote.host)).uploaded_bytes == len(good)
        assert path.read_bytes() == good
        assert (await controller.deploy(remote.host)).uploaded_bytes == 0
        assert [made.outcome for made in controller.deployments.history(2)] == [PRESENT, INSTALLED]
    assert left(remote) == [path.parent.name]


async def test_an_error_drops_what_was_known(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    runners = Runners(str(runner(carrier, tmp_path / "dist", size=SIZE)), root=str(remote.root), pauses=QUICK)
    async with remote.controller(runners=runners) as controller:
        path = Path((await controller.deploy(remote.host)).path)
        (entry,) = known(controller, remote)
        assert entry.is_valid(time.time())
        path.unlink()
        restart(remote, 'ForceCommand ulimit -f 64; eval "$SSH_ORIGINAL_COMMAND"')
        with pytest.raises(DeployError):
            await runs(controller, remote)
        (entry,) = known(controller, remote)
        assert (entry.verified_at, entry.checked_at) == (None, None)
        restart(remote)
        assert await runs(controller, remote) is not None
        (entry,) = known(controller, remote)
        assert entry.is_valid(time.time())


async def test_versions_live_side_by_side_and_the_way_back_holds(
    remote: RemoteHost, carrier: Path, tmp_path: Path
) -> None:
    old, new = (
        Runners(str(runner(carrier, tmp_path / "dist", version)), root=str(remote.root), pauses=QUICK)
        for version in ("1.0.0", "2.0.0")
    )
    folders = [each.likely()[0].folder for each in (old, new)]
    async with remote.controller(runners=old) as controller:
        assert await runs(controller, remote) is not None
    wait_for_another_time(remote.root / folders[0])
    async with remote.controller(runners=new) as controller:
        assert (await runs(controller, remote) or pytest.fail("not updated")).version == "2.0.0"
        assert left(remote) == folders
        assert (await controller.roll_back(remote.host)).version == "1.0.0"
        assert controller.deployments.history(1)[0].outcome == ROLLED_BACK
        with pytest.raises(DeployError) as refused:
            await controller.roll_back(remote.host)
        assert refused.value.code == "deploy.no_version"
    async with remote.controller(runners=new) as controller:
        assert await runs(controller, remote) is None
        assert await started(controller, remote) == "1.0.0"
    async with remote.controller(runners=new) as controller:
        await controller.deploy(remote.host)
        assert await runs(controller, remote) is None
        assert await started(controller, remote) == "2.0.0"
    async with remote.controller(runners=new) as controller:  # gone from the host, but it is here
        shutil.rmtree(remote.root / folders[0])
        assert (await controller.roll_back(remote.host, "1.0.0")).uploaded_bytes > 0
        with pytest.raises(DeployError, match=r"no runner '3\.0\.0'"):
            await controller.roll_back(remote.host, "3.0.0")


async def started(controller: Controller, remote: RemoteHost) -> str:
    """The version of the runner whose agent was started, which the carrier puts into the job's environment."""
    execution = await controller.submit(remote.host, Job(load(remote.script("echo $CARRIER_VERSION"))))
    return (await collect(execution))["stdout"].decode().strip()


def wait_for_another_time(path: Path) -> None:
    """Has it be a second older: some file systems, and busybox's `ls -t`, know no less."""
    then = time.time() - 2
    os.utime(path, (then, then))


async def test_old_versions_go_and_those_in_use_stay(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    remote.root.mkdir(mode=0o700)
    folders = []
    for number in range(1, 6):
        version = Runners(
            str(runner(carrier, tmp_path / "dist", f"{number}.0.0")), root=str(remote.root), pauses=QUICK, kept=2
        )
        folders.append(version.likely()[0].folder)
        async with remote.controller(runners=version) as controller:
            await controller.deploy(remote.host)
            if number == 3:
                await controller.roll_back(remote.host)
        for age, folder in enumerate(reversed(folders), 1):
            if (remote.root / folder).exists():
                os.utime(remote.root / folder, (time.time() - 10 * age,) * 2)
    assert left(remote) == folders[-2:]


async def test_a_runner_that_is_running_is_not_removed(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    """Its process loads files of its folder, and its scripts find their helpers there."""
    folder = remote.root / f"0.9.0-{'a' * 12}"
    folder.mkdir(parents=True, mode=0o700)
    shutil.copy("/bin/sleep", folder / "cronium-runner")
    wait_for_another_time(folder)
    running = subprocess.Popen([folder / "cronium-runner", "60"])
    try:
        for version in ("1.0.0", "2.0.0"):
            runners = Runners(str(runner(carrier, tmp_path / "dist", version)), root=str(remote.root), kept=1)
            async with remote.controller(runners=runners) as controller:
                await controller.deploy(remote.host)
            assert left(remote) == [folder.name, runners.likely()[0].folder]
    finally:
        running.kill()
        running.wait()
    runners = Runners(str(runner(carrier, tmp_path / "dist", "3.0.0")), root=str(remote.root), kept=1)
    async with remote.controller(runners=runners) as controller:
        await controller.deploy(remote.host)
    assert left(remote) == [runners.likely()[0].folder]


async def test_deployments_at_once_are_all_recorded(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    runners = Runners(str(runner(carrier, tmp_path / "dist")), root=str(remote.root), pauses=QUICK)

    async def deploy_once() -> None:
        async with remote.controller(runners=runners) as controller:
            await controller.deploy(remote.host)

    await asyncio.gather(*[deploy_once() for _ in range(3)])
    async with remote.controller(runners=runners) as controller:
        assert len(controller.deployments.history()) == 3
        assert len(controller.deployments.history(2, remote.host)) == 2
        assert controller.deployments.history(5, parse_host("elsewhere")) == []


def test_the_command_tells_its_history(remote: RemoteHost) -> None:
    assert remote.cronium("deploy", "--host", remote.server.target).returncode == 0
    done = remote.cronium("deploy", "--history")
    assert b"installed (" in done.stdout
    done = remote.cronium("deploy", "--host", remote.server.target, "--rollback")
    assert done.returncode == 125
    assert b"[deploy.no_version]" in done.stderr
