"""Whether a job puts another runner on its host: decisions, where the word stands, and what happens on a real host."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from carriers import runner
from cronium_controller.deploy.update_policy import UpdatePolicy, candidates, in_use, major, may_update
from cronium_controller.dispatch import Controller
from cronium_controller.doctor import BAD
from cronium_controller.errors import ControllerError, DeployError
from cronium_controller.hosts import UPDATES, Host, parse_host
from cronium_controller.hosts_file import parse
from cronium_controller.inventory import Inventory
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners
from cronium_controller.store import Store
from remote_host import RemoteHost, collect

ALWAYS, SAME_MAJOR, NEVER = UpdatePolicy


@pytest.mark.parametrize(
    ("present", "ours", "same_major"),
    [
        ("1.0.0", "1.9.0", True),
        ("1.9.0", "1.0.0", True),
        ("1.0.0", "2.0.0", False),
        ("0.1.0", "0.2.0", True),
        ("10.0.0", "1.0.0", False),
        ("01.0.0", "1.0.0", True),
        ("custom", "custom", False),
        (None, "2.0.0", True),
        ("1.0.0", None, False),
    ],
)
def test_same_major_compares_the_first_numbers(present: str | None, ours: str | None, same_major: bool) -> None:
    assert may_update(SAME_MAJOR, present, ours) is same_major
    assert may_update(NEVER, present, ours) is False
    assert may_update(ALWAYS, present, ours) is (ours is not None)


def test_a_version_may_have_no_major_number() -> None:
    assert [major(text) for text in ("1.0.0", "7", "007.1", "0", "x1", "", "1x")] == [
        "1",
        "7",
        "7",
        "0",
        None,
        None,
        None,
    ]


def test_the_last_used_comes_first_and_ours_never() -> None:
    a, b, c = (f"{number}.0.0-{'a' * 12}" for number in (1, 2, 3))
    assert candidates([c, b, a], [a, "gone"], c) == [a, b]
    assert (in_use([b, a], [a], c), in_use([c, a], [a], c), in_use([], [a], c)) == ("1.0.0", "3.0.0", None)


def test_option_then_environment_then_hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(UpdatePolicy) == UPDATES
    content = (
        b"defaults: {update: never}\nhosts:\n  a:\n  b: {update: same-major}\n  here: {local: true, update: never}\n"
    )
    inventory = Inventory(parse(content, "hosts.yaml", {}))
    hosts = [inventory.host(name) for name in ("a", "b", "here")]
    assert [Runners().update_policy(host) for host in hosts] == [NEVER, SAME_MAJOR, NEVER]
    assert Runners().update_policy(parse_host("a")) is ALWAYS
    monkeypatch.setenv("CRONIUM_UPDATE", "always")
    assert {Runners().update_policy(host) for host in hosts} == {ALWAYS}
    assert {Runners(update="never").update_policy(host) for host in hosts} == {NEVER}
    monkeypatch.setenv("CRONIUM_UPDATE", "sometimes")
    with pytest.raises(ControllerError, match=r"CRONIUM_UPDATE: 'sometimes'.*always, same-major, never"):
        Runners()
    with pytest.raises(ControllerError, match=r"hosts\.yaml:2: a: update: 'no' must be always, same-major or never"):
        parse(b"hosts:\n  a: {update: 'no'}\n", "hosts.yaml", {})
    with pytest.raises(ControllerError, match="is no update policy"):
        Host("a", "a", update="sometimes")
    store = Store(tmp_path / "controller.db")
    store.record("one", hosts[0], "0" * 64, "label", 0.0)
    found = store.find("one")
    store.close()
    assert found is not None
    assert found.host.update == "never", "a later attach must not update it either"


async def version_of_a_job(controller: Controller, remote: RemoteHost, host: Host) -> str:
    execution = await controller.submit(host, Job(load(remote.script("echo $CARRIER_VERSION"))))
    return (await collect(execution))["stdout"].decode().strip()


@pytest.mark.sshd
async def test_a_job_uses_what_is_there_or_updates_it(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    def controller(version: str, policy: str, *, is_new: bool = False) -> Controller:
        binary = runner(carrier, tmp_path / "dist", version)
        runners = Runners(str(binary), root=str(remote.root), pauses=(0.02,), update=policy)
        return remote.controller(runners=runners, store=Store(tmp_path / f"{version}{policy}.db") if is_new else None)

    async with controller("1.0.0", "same-major") as first:
        assert await version_of_a_job(first, remote, remote.host) == "1.0.0", "the first one is no update"
    for policy in ("never", "same-major"):
        for is_new in (False, True):  # with and without knowing what the host has
            async with controller("2.0.0", policy, is_new=is_new) as later:
                before = remote.count_sessions("exec")
                assert await version_of_a_job(later, remote, remote.host) == "1.0.0"
                assert is_new or remote.count_sessions("exec") == before + 1, "the agent's own"
                assert {made.version for made in later.deployments.history()} <= {"1.0.0"}
    async with controller("2.0.0", "never") as later:
        seen = [finding.seen async for finding in later.examine(remote.host) if finding.name == "runner"]
        assert "1.0.0" in seen[0]
    assert [name.split("-")[0] for name in os.listdir(remote.root)] == ["1.0.0"]
    async with controller("1.1.0", "same-major") as later:
        assert await version_of_a_job(later, remote, remote.host) == "1.1.0"
    async with controller("2.0.0", "never") as later:
        await later.deploy(remote.host)
        assert await version_of_a_job(later, remote, remote.host) == "2.0.0", "what was asked for"
    async with remote.controller(runners=Runners(str(carrier), root=str(remote.root))) as usual:
        host = replace(remote.host, update="never")
        assert await version_of_a_job(usual, remote, host) == "2.0.0"


@pytest.mark.sshd
async def test_never_with_nothing_to_use_is_one_sentence(remote: RemoteHost, carrier: Path, tmp_path: Path) -> None:
    binary = runner(carrier, tmp_path / "dist")
    async with remote.controller(runners=Runners(str(binary), root=str(remote.root), update="never")) as controller:
        job = Job(load(remote.script("true")))
        with pytest.raises(DeployError) as refused:
            await controller.submit(remote.host, job)
        assert refused.value.code == "deploy.update_refused"
        assert "the update policy 'never'" in refused.value.message
        assert refused.value.message.endswith("install it with: cronium deploy")
        assert [finding.level async for finding in controller.examine(remote.host) if finding.name == "runner"] == [BAD]
        broken = remote.root / f"0.9.0-{'b' * 12}"
        broken.mkdir(mode=0o700)
        (broken / "cronium-runner").write_text("#!/bin/sh\necho too old >&2; exit 1\n")
        (broken / "cronium-runner").chmod(0o700)
        with pytest.raises(DeployError, match=rf"{broken.name} does not start: too old"):
            await controller.submit(remote.host, job)
        assert os.listdir(remote.root) == [broken.name], "nothing was put there"
