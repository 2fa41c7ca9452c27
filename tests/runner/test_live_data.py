"""Jobs on the real platform: they see each other's writes, none is lost, and none is applied twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import live_platform
from live_platform import LivePlatform
from runner_process import Host, wait_until


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    with live_platform.platform(tmp_path_factory.mktemp("platform")) as made:
        yield made


def api(platform: LivePlatform, execution: str, user: str) -> dict[str, Any]:
    return {"endpoint": platform.endpoint, "token": platform.token(execution, user)}


def variable(platform: LivePlatform, host: Host, user: str, name: str) -> str:
    """What another job of that user reads."""
    script = host.script(f"cronium.getVariable --default none {name}\n", "read.sh")
    environment = platform.environment(f"reads-{user}-{name}", user)
    return str(host.run_json(script, env=dict(environment))["stdout"]["text"]).strip()


def test_two_jobs_see_each_others_writes(
    platform: LivePlatform, tmp_path_factory: pytest.TempPathFactory, install_directory: Path
) -> None:
    hosts = [Host(tmp_path_factory.mktemp("host"), install_directory) for _ in range(2)]
    scripts = [
        "cronium.setVariable PING 1; until [ $(cronium.getVariable --default 0 PONG) = 1 ]; do sleep 0.02; done",
        "until [ $(cronium.getVariable --default 0 PING) = 1 ]; do sleep 0.02; done; cronium.setVariable PONG 1",
    ]
    with hosts[0].agent() as one, hosts[1].agent() as two:
        channels = [
            agent.start(agent.host.payload(script), name, api=api(platform, name, "pair"))
            for agent, script, name in zip((one, two), scripts, ("ping", "pong"), strict=True)
        ]
        for agent, channel in zip((one, two), channels, strict=True):
            assert agent.finished(channel)["state"] == "succeeded"
    for host in hosts:
        host.check_nothing_left()


def test_a_hundred_parallel_writers_of_a_hundred_keys_lose_nothing(host: Host, platform: LivePlatform) -> None:
    script = 'for n in $(seq 100); do cronium.setVariable "K$n" "$n" & done; wait; cronium.output done yes\n'
    with host.agent() as agent:
        channel = agent.start(host.payload(script), "many", api=api(platform, "many", "many"))
        result = agent.finished(channel)
    assert (result["state"], result["undelivered"], result["refused"]) == ("succeeded", 0, 0)
    assert result["variables"] == {f"K{n}": str(n) for n in range(1, 101)}
    assert applied(platform, "many") == list(range(1, 102))
    assert variable(platform, host, "many", "K77") == "77"


def test_changes_of_one_variable_by_two_jobs_lose_nothing(host: Host, platform: LivePlatform) -> None:
    script = (
        "for n in 1 2 3 4 5; do cronium.incrementVariable C 1.10 >/dev/null & done; wait; cronium.appendVariable T x\n"
    )
    with host.agent() as agent:
        payload = host.payload(script)
        channels = [agent.start(payload, name, api=api(platform, name, "counts")) for name in ("c1", "c2")]
        for channel in channels:
            result = agent.finished(channel)
            assert (result["state"], result["undelivered"], result["refused"]) == ("succeeded", 0, 0)
    assert (variable(platform, host, "counts", "C"), variable(platform, host, "counts", "T")) == ("11.00", "xx")


def test_a_platform_that_goes_and_comes_back_applies_each_write_once(host: Host, platform: LivePlatform) -> None:
    script = """
for n in $(seq 40); do cronium.setVariable N "$n"; echo "wrote $n"; sleep 0.02; done
"""
    with host.agent() as agent:
        channel = agent.start(host.payload(script), "once", api=api(platform, "once", "once"))
        host.wait_running("once", b"wrote 5\n")
        platform.down()
        host.wait_running("once", b"wrote 30\n")
        platform.up()
        assert agent.finished(channel)["undelivered"] == 0
    assert applied(platform, "once") == list(range(1, 41))
    wait_until(lambda: variable(platform, host, "once", "N") == "40", "the last value")


def applied(platform: LivePlatform, execution: str) -> list[int | None]:
    """The numbers of an execution's writes, in the order in which the audit log has them."""
    entries = platform.store.audit(10_000, execution)
    return [entry.sequence for entry in entries if entry.action.endswith(".set")]
