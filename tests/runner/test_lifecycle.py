"""The table of states holds together, and whatever a real execution writes down follows it."""

import itertools

import pytest

from cronium_runner.lifecycle import MOVES, State, has_move
from runner_process import Host


def test_every_state_has_a_row_and_only_finished_is_final() -> None:
    assert set(MOVES) == set(State)
    assert [state for state, following in MOVES.items() if not following] == [State.FINISHED]


def test_every_state_can_be_reached_and_can_end() -> None:
    reached = {State.PREPARING}
    for _ in State:
        reached |= {following for state in reached for following in MOVES[state]}
    assert reached == set(State)
    for start in State:
        ends = {start}
        for _ in State:
            ends |= {following for state in ends for following in MOVES[state]}
        assert State.FINISHED in ends


@pytest.mark.parametrize("state", State)
def test_no_state_goes_back_or_stays(state: State) -> None:
    order = list(State)
    assert all(order.index(following) > order.index(state) for following in MOVES[state])


def test_nothing_runs_before_the_claim_and_nothing_follows_the_end() -> None:
    assert not has_move(State.PREPARING, State.RUNNING)
    assert not any(has_move(State.FINISHED, state) for state in State)


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        ("true\n", [], ["claimed", "running", "finished"]),
        ("sleep 60\n", ["--timeout", "0.05"], ["claimed", "running", "terminating", "finished"]),
        ("sleep 60 >/dev/null 2>&1 &\n", [], ["claimed", "running", "terminating", "finished"]),
    ],
    ids=["plain", "timeout", "stray"],
)
def test_what_an_execution_writes_down_follows_the_table(
    host: Host, script: str, options: list[str], expected: list[str]
) -> None:
    host.run("run", "--execution-id", "job", *options, host.script(script))
    states = [record["state"] for record in host.history("job")]
    assert states == expected
    assert all(has_move(State(one), State(other)) for one, other in itertools.pairwise(states))
