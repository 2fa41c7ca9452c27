"""Staged roll-outs over real SSH servers, with runners of two versions that run from this checkout."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carriers import runner
from cronium_controller.dispatch import Controller
from cronium_controller.hosts import Host, parse_host
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners, read_binary
from many_hosts import ManyHosts
from openssh import sshd_path
from remote_host import collect
from runner_process import wait_until

pytestmark = pytest.mark.sshd
HOSTS = 20
BROKEN = (
    "fail() { echo this kernel is too old >&2; exit 1; }; "
    "if [ $1 = agent ]; then [ -e ~/broken ] && fail; "
    "if [ -e ~/ends ]; then [ -e ~/checked ] && { kill $(cat ~/ends); fail; }; touch ~/checked; fi; fi\n"
)
"""What the new runner does first: on some hosts it installs, says its version, and cannot run a job. On those with a
file `ends` it can at first; later it ends the SSH server whose process id is in it."""


class Estate:
    """Hosts that have runner 1.0.0, and a controller whose own is 2.0.0."""

    def __init__(self, many: ManyHosts, carrier: Path, folder: Path) -> None:
        self.many = many
        self.old = runner(carrier, folder / "old", "1.0.0")
        self.new = runner(carrier, folder / "new", "2.0.0", first=BROKEN)
        self.folders = [read_binary(path).folder for path in (self.old, self.new)]
        many.binary = self.new
        for target in many.targets:
            self.install_old(target)

    def install_old(self, target: str) -> None:
        root = self.many.home_of(target) / "lib"
        root.mkdir(mode=0o700)
        subprocess.run(["sh", self.old, "install", root / self.folders[0]], check=True)
        (root / self.folders[0] / "cronium-runner").chmod(0o700)
        os.utime(root / self.folders[0], (0, 0))

    def break_host(self, number: int) -> None:
        """Hosts count from 1."""
        (self.many.home_of(self.many.targets[number - 1]) / "broken").touch()

    def forms(self, target: str) -> set[str]:
        return set(os.listdir(self.many.home_of(target) / "lib"))

    def host(self, target: str) -> Host:
        return parse_host(target, identity=str(self.many.server.identity))

    def controller(self, binary: Path | None = None) -> Controller:
        runners = Runners(str(binary or self.new), root="lib", pauses=(0.02,))
        return self.many.controller(runners=runners)

    def words(self, *more: str) -> list[str]:
        return ["deploy", *(word for target in self.many.targets for word in ("--host", target)), "--forks", "4", *more]

    async def version_of_a_job(self, controller: Controller, target: str) -> str:
        execution = await controller.submit(self.host(target), Job(load(self.many.script("echo $CARRIER_VERSION"))))
        return (await collect(execution))["stdout"].decode().strip()


@pytest.fixture
def estate(
    request: pytest.FixtureRequest, tmp_path: Path, carrier: Path, install_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Estate]:  # fmt: skip
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    environment = {"CRONIUM_INSTALL_DIR": str(install_directory)}
    count = getattr(request, "param", 3)
    with ManyHosts(tmp_path / "hosts", carrier, Path("lib"), count, own_homes=True, environment=environment) as many:
        yield Estate(many, carrier, tmp_path)


def told(done: "subprocess.CompletedProcess[bytes]") -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What --json says of each host, and of all."""
    *hosts, summary = map(json.loads, done.stdout.splitlines())
    return {host["host"]: host for host in hosts}, summary


@pytest.mark.parametrize("estate", [HOSTS], indirect=True)
async def test_a_third_that_is_broken_stops_it_and_all_go_back(estate: Estate) -> None:
    """1, 2, 10, 20 hosts: the third stage is the first that has broken ones in it. A job of the old runner goes on."""
    many, (old, new) = estate.many, estate.folders
    first, *_, last = many.targets
    for number in range(3, HOSTS + 1, 3):
        estate.break_host(number)
    go = many.folder / "go"
    async with estate.controller(estate.old) as controller:
        script = many.script(f"echo begun; while ! [ -e {go} ]; do sleep 0.1; done; echo $CARRIER_VERSION\n")
        running = await controller.submit(estate.host(first), Job(load(script)))
        assert await estate.version_of_a_job(controller, last) == "1.0.0"  # so it is known what to hold it at
        words = estate.words("--stage", "1,10%,50%,100%", "--max-failures", "1", "--json")
        done = many.cronium(*words)
        hosts, summary = told(done)
        assert (summary["verdict"], summary["stages"], done.returncode) == ("rolled back", [1, 2, 10, 20], 125), done
        assert b"stage 3 of 4: 8 hosts" in done.stderr
        assert b"stage 4 of 4" not in done.stderr
        failed = [target for target in many.targets if hosts[target]["state"] == "failed"]
        assert set(failed) <= {many.targets[number] for number in (2, 5, 8)}
        assert len(failed) >= 2
        assert all("this kernel is too old" in hosts[target]["error"]["message"] for target in failed)
        assert hosts[first]["state"] == hosts[many.targets[1]]["state"] == "rolled back"
        begun = [target for target in many.targets if hosts[target]["state"] != "waiting"]
        assert {(hosts[target]["before"], hosts[target]["uses"]) for target in begun} == {(old, old)}
        assert {target for target in many.targets if new in estate.forms(target)} == set(begun)
        assert set(many.targets[10:]).isdisjoint(begun)
        go.touch()
        assert (await collect(running))["stdout"] == b"begun\n1.0.0\n"
        assert (await running.result()).exit_code == 0
    async with estate.controller() as controller:
        assert [await estate.version_of_a_job(controller, target) for target in (first, failed[0])] == ["1.0.0"] * 2
        assert await estate.version_of_a_job(controller, last) == "1.0.0", "no job brings it the new one"
        outcomes = {made.outcome for made in controller.deployments.history(100, estate.host(first))}
        assert "rolled back" in outcomes


def test_stage_by_stage_to_the_end_then_nothing_to_do(estate: Estate) -> None:
    """The third one is broken, which is endured: it goes back alone."""
    many, (old, new) = estate.many, estate.folders
    estate.break_host(3)
    done = many.cronium(*estate.words("--stage", "1,100%", "--soak", "0", "--max-failures", "1"))
    assert done.returncode == 101, done
    lines = dict(line.split(": ", 1) for line in done.stdout.decode().splitlines())
    one, two, three = many.targets
    assert lines[one] == lines[two] == f"updated; jobs use {new}, before {old}"
    assert lines[three].startswith("failed: ")
    assert lines[three].endswith(f"; jobs use {old}")
    assert b"complete: 2 updated, 1 failed of 3 hosts" in done.stderr
    (many.home_of(three) / "broken").unlink()
    done = many.cronium(*estate.words("--stage", "2,100%", "--json"))
    hosts, summary = told(done)
    assert (done.returncode, summary["states"]) == (0, {"unchanged": 2, "updated": 1})
    assert {host["uses"] for host in hosts.values()} == {new}


def test_a_host_that_had_none_has_nothing_to_go_back_to(estate: Estate) -> None:
    """It is the first of its stage; the others of the stage are not begun any more."""
    many = estate.many
    target, *others = many.targets
    for path in sorted((many.home_of(target) / "lib").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    estate.break_host(1)
    done = many.cronium(*estate.words("--stage", "100%", "--json", "--forks", "1"))
    hosts, summary = told(done)
    assert (done.returncode, summary["verdict"]) == (125, "rolled back")
    assert {hosts[other]["state"] for other in others} == {"waiting"}
    assert (hosts[target]["before"], hosts[target]["uses"]) == (None, estate.folders[1])
    assert hosts[target]["note"].startswith("it had no runner before this roll-out, so there is none to go back to")


async def test_one_that_fails_after_the_soak_and_is_then_away(estate: Estate) -> None:
    """The way back is decided here, so a host that cannot be asked any more goes back all the same."""
    many, (old, new) = estate.many, estate.folders
    one, two, three = many.targets
    (many.home_of(one) / "ends").write_text((many.server.folder / "sshd.pid").read_text())
    done = many.cronium(*estate.words("--stage", "1,100%", "--soak", "1s", "--json"))
    hosts, summary = told(done)
    assert (summary["verdict"], done.returncode) == ("rolled back", 125), done
    assert "this kernel is too old" in hosts[one]["error"]["message"]
    assert (hosts[one]["uses"], "was not checked there" in hosts[one]["note"]) == (old, True)
    assert {hosts[target]["state"] for target in (two, three)} == {"waiting"}
    assert new not in estate.forms(two)
    async with estate.controller() as controller:
        seen = controller.deployments.seen(estate.host(one), "lib")
        assert seen is not None
        assert (seen.folder, seen.is_chosen) == (old, True), "for the jobs to come"


def test_an_interrupt_leaves_a_report_of_who_has_which(estate: Estate) -> None:
    many, (old, new) = estate.many, estate.folders
    process = many.start_cronium(
        *estate.words("--stage", "1,100%", "--soak", "10m", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"waiting 600 s" in line:
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    hosts, summary = told(subprocess.CompletedProcess([], 0, stdout, stderr))
    assert (process.returncode, summary["verdict"], summary["exitStatus"]) == (130, "interrupted", 130)
    assert [hosts[target]["state"] for target in many.targets] == ["updated", "waiting", "waiting"]
    assert (hosts[many.targets[0]]["before"], hosts[many.targets[0]]["uses"]) == (old, new)
    assert b"go on with the same command" in stderr
    wait_until(lambda: not many.agents(), "the agents to end")


def test_words_that_do_not_go_together(estate: Estate) -> None:
    for words, said in (
        (["--stage", "1,x"], b"'x' is no number"),
        (["--stage", "1", "--rollback"], b"say either --rollback or --stage"),
        (["--soak", "10m"], b"--soak is for --stage only"),
        (["--stage", "1", "--soak", "10"], b"user@:22"),
    ):
        done = estate.many.cronium(*estate.words(*words, "--host", "user@:22"))
        assert done.returncode in (2, 125), done
        assert said in done.stderr
    assert all(estate.forms(target) == {estate.folders[0]} for target in estate.many.targets), "nothing was changed"
