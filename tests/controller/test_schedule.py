"""Who is next and what it all amounts to: exact, without any host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_controller.errors import ControllerError
from cronium_controller.schedule import Schedule, Share, Tally, Verdict, parse_share
from cronium_runner.wire.results import Outcome, Result

OK = Result("job", Outcome.SUCCEEDED, exit_code=0)


def tally(*results: Result) -> Tally:
    made = Tally()
    for result in results:
        made.add(result)
    return made


def test_the_verdict_and_the_exit_status_follow_the_rule() -> None:
    failed = Result("job", Outcome.FAILED, exit_code=3)
    gone = Result("job", Outcome.UNKNOWN)
    assert (tally(OK, OK).verdict, tally(OK, OK).exit_status) == (Verdict.SUCCESS, 0)
    assert (tally(OK, failed, gone).verdict, tally(OK, failed, gone).exit_status) == (Verdict.PARTIAL_SUCCESS, 102)
    assert (tally(failed, gone).verdict, tally(failed, gone).exit_status) == (Verdict.FAILED, 255)
    assert tally(failed).exit_status == 3
    assert tally(OK, *[failed] * 400).exit_status == 255
    assert tally(OK, failed).states == {"succeeded": 1, "failed": 1}


@pytest.mark.parametrize(
    ("text", "share", "of_seven"), [("5", Share(5), 5), ("30%", Share(30, True), 2), ("100%", Share(100, True), 7)]
)
def test_a_share_is_a_number_or_a_percentage(text: str, share: Share, of_seven: int) -> None:
    assert parse_share(text, "--serial", lowest=1) == share
    assert share.of(7) == of_seven


@pytest.mark.parametrize("text", ["", "0", "-1", "101%", "five", "5 %", "1.5", "٣", "%", "9" * 30])
def test_no_share(text: str) -> None:
    with pytest.raises(ControllerError, match=r"--serial .*percentage"):
        parse_share(text, "--serial", lowest=1)


def test_a_batch_begins_when_the_one_before_has_ended() -> None:
    schedule = Schedule("abcde", forks=10, serial=Share(2))
    assert [schedule.next(), schedule.next(), schedule.next()] == ["a", "b", None]
    schedule.ended(ok=True)
    assert schedule.next() is None
    schedule.ended(ok=False)
    assert [schedule.next(), schedule.next(), schedule.next()] == ["c", "d", None]


def test_too_many_failures_start_nothing_new() -> None:
    schedule = Schedule("abcdef", forks=2, max_failures=Share(1))
    assert [schedule.next(), schedule.next()] == ["a", "b"]
    schedule.ended(ok=False)
    assert schedule.next() == "c"
    schedule.ended(ok=False)
    assert (schedule.next(), schedule.is_stopped, schedule.is_over) == (None, True, False)
    schedule.ended(ok=True)
    assert (schedule.is_over, schedule.left()) == (True, ["d", "e", "f"])


@given(
    st.lists(st.integers(0, 30), max_size=60),
    st.integers(1, 8),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_every_host_runs_once_and_never_more_than_allowed(
    hosts: list[int], forks: int, serial: int | None, endured: int | None, random: object
) -> None:
    schedule = Schedule(
        hosts,
        forks=forks,
        serial=None if serial is None else Share(serial),
        max_failures=None if endured is None else Share(endured),
    )
    begun: list[int] = []
    while not schedule.is_over:
        while (host := schedule.next()) is not None:
            begun.append(host)
        assert 0 < schedule.running <= min(forks, serial or forks)
        schedule.ended(ok=random.random() < 0.7)  # type: ignore[attr-defined]
    assert len(begun) == len(set(begun))
    assert begun + schedule.left() == list(dict.fromkeys(hosts))
    if endured is None:
        assert schedule.left() == []
