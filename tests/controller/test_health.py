"""Health and breaker: pure counting, so every case is exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_controller import health
from cronium_controller.health import Breaker, SSHHealth


def half() -> float:
    return 0.5


def test_three_failures_in_a_row_are_unhealthy_and_one_success_mends() -> None:
    seen = SSHHealth()
    assert (seen.is_healthy, seen.success_rate) == (True, 0.0)
    for now in (1.0, 2.0):
        seen.record_failure(now)
        assert seen.is_healthy
    seen.record_failure(3.0)
    assert [seen.is_healthy] == [False]
    seen.record_success(4.0)
    assert [seen.is_healthy] == [True]
    assert (seen.last_success, seen.last_failure) == (4.0, 3.0)
    assert (seen.consecutive_failures, seen.consecutive_successes) == (0, 1)
    assert (seen.total_failures, seen.total_successes, seen.success_rate) == (3, 1, 0.25)


def opened(now: float = 1000.0) -> Breaker:
    breaker = Breaker()
    for _ in range(health.OPENING_FAILURES):
        assert breaker.wait(now) == 0
        breaker.begin(now)
        breaker.record_unreachable(now, half)
    return breaker


def test_it_opens_only_after_several_calls_that_reached_nobody() -> None:
    breaker = opened()
    assert breaker.wait(1000.0) == pytest.approx(health.FIRST_PAUSE * 0.75)
    assert breaker.wait(1000.0 + health.FIRST_PAUSE) == 0


def test_an_open_breaker_lets_one_call_try_and_closes_with_the_first_that_gets_through() -> None:
    breaker = opened()
    now = 1000.0 + health.FIRST_PAUSE
    breaker.begin(now)
    assert breaker.wait(now) == health.TRIAL_SECONDS, "a second call is turned away while one tries"
    breaker.record_reached()
    assert breaker == Breaker()


def test_a_trial_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), 1000.0, []
    for _ in range(12):
        now += breaker.wait(now)
        breaker.begin(now)
        breaker.record_unreachable(now, lambda: 1.0)
        pauses.append(breaker.wait(now))
    assert pauses[:3] == [pytest.approx(health.FIRST_PAUSE * factor) for factor in (2, 4, 8)]
    assert pauses[-1] == health.LONGEST_PAUSE


def test_a_trial_that_nobody_tells_the_end_of_does_not_stick() -> None:
    breaker = opened()
    now = 1000.0 + health.FIRST_PAUSE
    breaker.begin(now)
    assert breaker.wait(now + health.TRIAL_SECONDS) == 0
    breaker.begin(now)
    breaker.release()
    assert breaker.wait(now) == 0


def test_a_clock_that_was_set_back_does_not_stick() -> None:
    breaker = opened(now=1e9)
    assert breaker.wait(5.0) == 0


@given(st.lists(st.sampled_from(["reached", "unreachable", "release", "vanish"]), max_size=60), st.data())
def test_whatever_happens_a_call_is_allowed_again_within_five_minutes(history: list[str], data: st.DataObject) -> None:
    breaker, now = Breaker(), 1e9
    for event in history:
        now += data.draw(st.floats(0, 400))
        waited = breaker.wait(now)
        assert 0 <= waited <= health.LONGEST_PAUSE
        now += waited
        assert breaker.wait(now) == pytest.approx(0, abs=1e-3)
        breaker.begin(now)
        match event:
            case "reached":
                breaker.record_reached()
            case "unreachable":
                breaker.record_unreachable(now, lambda: data.draw(st.floats(0, 1)))
            case "release":
                breaker.release()
