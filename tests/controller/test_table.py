"""What a person reads at the end of a run on many hosts."""

import pytest

from cronium_controller.progress import elapsed
from cronium_controller.schedule import Tally
from cronium_controller.table import SHOWN_FAILURES, SHOWN_SUCCESSES, Table
from cronium_runner.wire.results import Outcome, Result


def shown(*results: Result, stopped: int = 0) -> list[str]:
    table, tally = Table(), Tally()
    for result in results:
        table.add(result)
        tally.add(result)
    return list(table.lines(tally, lambda text, _: text, 2.0, stopped=stopped))


def test_a_failure_says_why_and_what_to_do_next() -> None:
    ok = Result("run.1", Outcome.SUCCEEDED, host="web01", exit_code=0, duration_ms=240.0, transport="direct")
    bad = Result("run.2", Outcome.FAILED, host="web02", exit_code=3, duration_ms=4200.0, transport="direct")
    message = "web03: cannot connect to web03: Connection refused"
    gone = Result("run.3", Outcome.UNKNOWN, host="web03", error_code="host.unreachable", error_message=message)
    assert shown(ok, bad, gone) == [
        "HOST   STATE      EXIT  TIME    WAY",
        "web01  succeeded  0     240 ms  direct",
        "web02  failed     3     4.2 s   direct",
        "  → cronium logs run.2",
        "web03  unknown    -     -       -",
        "  cannot connect to web03: Connection refused [host.unreachable]",
        "  → cronium doctor --host web03",
        "PARTIAL SUCCESS: 1 succeeded, 2 failed of 3 hosts in 2.0 s",
    ]


def test_what_is_shown_is_bounded() -> None:
    ok = Result("run.1", Outcome.SUCCEEDED, host="web01", exit_code=0)
    assert shown(*[ok] * (SHOWN_SUCCESSES + 1)) == ["SUCCESS: 21 succeeded of 21 hosts in 2.0 s"]
    bad = Result("run.2", Outcome.FAILED, host="web02", exit_code=3)
    lines = shown(*[bad] * (SHOWN_FAILURES + 7))
    assert lines[-2:] == [
        "… and 7 more failures: cronium history",
        "FAILED: 0 succeeded, 107 failed of 107 hosts in 2.0 s",
    ]
    stopped = Result("run.3", Outcome.REJECTED, host="web03", error_code="fanout.stopped", error_message="not begun")
    assert shown(ok, stopped, stopped, stopped=2)[-1].startswith("PARTIAL SUCCESS: 1 succeeded, 2 not begun of 3")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.24, "240 ms"), (4.2, "4.2 s"), (187, "3:07 min"), (7500, "2:05:00 h")]
)
def test_times_are_as_people_read_them(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text
