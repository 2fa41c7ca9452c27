"""Changes of a variable in API mode: each is applied once and in order, and its outcome is the script's answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from runner_process import AgentProcess, Host
from stub_platform import Seen, StubPlatform, Upset


@pytest.fixture
def stub() -> Iterator[StubPlatform]:
    with StubPlatform() as made:
        yield made


@pytest.fixture
def agent(host: Host) -> Iterator[AgentProcess]:
    with host.agent() as made:
        yield made


def run(agent: AgentProcess, stub: StubPlatform, script: str, **keys: Any) -> dict[str, Any]:
    """The result of a script in API mode, with what it said."""
    channel = agent.start(agent.host.payload(script), "e", api=stub.api(), **keys)
    result = agent.finished(channel)
    return {**result, "out": agent.stdout(channel).decode(), "err": agent.stderr(channel).decode()}


CALLS = """
cronium.setVariable N 5; cronium.incrementVariable N; cronium.incrementVariable N 10; cronium.incrementVariable C 1.5
cronium.appendVariable T a; cronium.appendVariable T b; cronium.getVariable T
cronium.deleteVariable GIVEN; cronium.getVariable --default none LIVE; cronium.deleteVariable GIVEN; echo $?
cronium.incrementVariable T; echo $?; cronium.setVariable LAST 1
"""


@pytest.mark.parametrize("tells_values", [True, False])
def test_changes_are_applied_there_in_order(agent: AgentProcess, stub: StubPlatform, tells_values: bool) -> None:
    """A service need not tell the new value: then it is read."""
    stub.tells_values = tells_values
    stub.variables = {"GIVEN": "theirs"}
    result = run(agent, stub, CALLS, variables={"GIVEN": "ours"})
    assert result["out"].split() == ["6", "16", "1.5", "ab", "none", "1", "1"]
    assert result["err"].splitlines() == [
        "Error: variable 'GIVEN' not found",
        "Error: the platform did not change variable 'T': 400 the variable is no number",
    ]
    assert [(one.method, one.path.removeprefix("/executions/e/"), one.body) for one in stub.writes()] == [
        ("PUT", "variables/N", {"value": "5"}), ("POST", "variables/N/increment", {"by": 1}),
        ("POST", "variables/N/increment", {"by": 10}), ("POST", "variables/C/increment", {"by": 1.5}),
        ("POST", "variables/T/append", {"text": "a"}), ("POST", "variables/T/append", {"text": "b"}),
        ("DELETE", "variables/GIVEN", None), ("DELETE", "variables/GIVEN", None),
        ("POST", "variables/T/increment", {"by": 1}), ("PUT", "variables/LAST", {"value": "1"}),
    ]  # fmt: skip
    assert [one.headers["idempotency-key"] for one in stub.writes()] == [f"e/{number}" for number in range(1, 11)]
    assert result["variables"] == {"N": 16, "C": 1.5, "T": "ab", "GIVEN": None, "LAST": "1"}
    assert (result["undelivered"], result["refused"]) == (0, 1)
    assert stub.variables == {"N": 16, "C": 1.5, "T": "ab", "LAST": "1"}


def test_a_service_without_changes_says_so_and_holds_up_nothing(agent: AgentProcess, stub: StubPlatform) -> None:
    stub.has_changes = False
    text = Upset(404, (("Content-Type", "text/plain"),), content=b"404 page not found\n")
    stub.upset = lambda seen: text if seen.path.endswith("/append") else None
    script = "".join(f"cronium.{call}; echo $?\n" for call in ("deleteVariable A", "incrementVariable A",
                                                               "appendVariable A x", "setVariable B 1"))  # fmt: skip
    result = run(agent, stub, script)
    assert result["out"].split() == ["1", "1", "1", "0"]
    for line in result["err"].splitlines():
        assert line.startswith("Error: the platform did not change variable 'A': the service has no such request (")
    assert len(result["err"].splitlines()) == 3
    assert stub.variables == {"B": "1"}
    assert (result["undelivered"], result["refused"], result["variables"]) == (0, 3, {"B": "1"})


def test_a_change_waits_for_a_platform_that_comes_back(agent: AgentProcess, stub: StubPlatform) -> None:
    """It is repeated under one number, and a read behind it waits too: only the platform knows what it comes to."""
    left = [Upset(503)] * 5

    def away(seen: Seen) -> Upset | None:
        if not left or not seen.path.endswith("/increment"):
            return None
        (agent.host.execution("e") / "work/go").touch()
        return left.pop()

    stub.upset = away
    script = """
cronium.setVariable N 1; cronium.incrementVariable N > incremented &
until [ -e go ]; do sleep 0.01; done; cronium.getVariable N; wait; cat incremented
"""
    result = run(agent, stub, script)
    assert (result["out"].split(), result["err"]) == (["2", "2"], "")
    assert [one.headers["idempotency-key"] for one in stub.writes()] == ["e/1", "e/2"]


def test_a_change_that_is_not_confirmed_in_time_is_kept(host: Host, stub: StubPlatform) -> None:
    def away(seen: Seen) -> Upset | None:
        return Upset(503) if seen.path.endswith("/append") else None

    stub.upset = away
    host.environment["CRONIUM_API_PATIENCE"] = "0.3"
    with host.agent() as agent:
        result = run(agent, stub, "cronium.appendVariable A x; echo $?")
    assert result["out"] == "1\n"
    assert result["err"] == (
        "Error: the platform did not confirm the change of variable 'A' within 0.3 s; "
        "it is kept and delivered later, so do not repeat it\n"
    )
    assert (result["undelivered"], result["variables"]) == (1, {})


def test_secrets_change_here_only(agent: AgentProcess, stub: StubPlatform) -> None:
    script = "cronium.appendVariable PASS -more; cronium.getVariable PASS | wc -c; cronium.deleteVariable PASS"
    result = run(agent, stub, script, secrets={"PASS": "first-word"})
    assert (result["out"].split(), result["err"], result["variables"]) == (["16"], "", {"PASS": None})
    assert stub.writes() == []
