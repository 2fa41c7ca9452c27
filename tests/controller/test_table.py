"""What a person reads at the end of a run on many hosts."""

import pytest

from cronium_controller.progress import elapsed
from cronium_controller.schedule import Tally
from cronium_controller.table import SHOWN_KINDS, SHOWN_SUCCESSES, Table, natural
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
        "HOST   STATE      EXIT  TIME    ROUTE",
        "web01  succeeded  0     240 ms  direct",
        "web02  failed     3     4.2 s   direct",
        "  → cronium logs run.2",
        "web03  unknown    -     -       -",
        "  cannot connect to web03: Connection refused [host.unreachable]",
        "  → cronium doctor --host web03",
        "PARTIAL SUCCESS: 1 succeeded, 2 failed of 3 hosts in 2.0 s",
    ]


def test_executions_on_one_host_go_by_their_ids() -> None:
    message = "web01: cannot connect to web01: Connection refused"
    gone = Result("second", Outcome.UNKNOWN, host="web01", error_code="host.unreachable", error_message=message)
    table, tally = Table(label=lambda result: result.execution_id), Tally()
    for result in (Result("first", Outcome.SUCCEEDED, host="web01", exit_code=0), gone):
        table.add(result)
        tally.add(result)
    assert list(table.lines(tally, lambda text, _: text, 2.0, stopped=0, noun="executions")) == [
        "EXECUTION  STATE      EXIT  TIME  ROUTE",
        "first      succeeded  0     -     -",
        "second     unknown    -     -     -",
        "  cannot connect to web01: Connection refused [host.unreachable]",
        "  → cronium doctor --host web01",
        "PARTIAL SUCCESS: 1 succeeded, 1 failed of 2 executions in 2.0 s",
    ]


def test_what_was_not_begun_fails_the_run_and_has_no_exit_status_of_its_own() -> None:
    stopped = Result("run.2", Outcome.REJECTED, host="web02", error_code="fanout.stopped", error_message="not begun")
    for first, expected in [
        (Result("run.1", Outcome.FAILED, host="web01", exit_code=3), 3),
        (Result("run.1", Outcome.TIMED_OUT, host="web01", signal=15), 124),
        (Result("run.1", Outcome.SUCCEEDED, host="web01", exit_code=0), 102),
        (stopped, 125),
    ]:
        tally = Tally()
        for result in (first, stopped, stopped):
            tally.add(result)
        assert tally.exit_status == expected


def test_an_interrupt_before_any_host_was_begun_is_an_interrupt() -> None:
    tally = Tally()
    tally.is_interrupted = True
    tally.add(Result("run.1", Outcome.REJECTED, host="web01", error_code="fanout.stopped", error_message="not begun"))
    assert tally.exit_status == 130


def test_names_in_wide_letters_do_not_bend_the_table() -> None:
    ok = Result("run.1", Outcome.SUCCEEDED, host="web01", exit_code=0, transport="direct")
    heading, *rows, _ = shown(ok, ok._replace(host="東京01"), ok._replace(host="cafe\u0301"))
    assert {row[: row.index("succeeded")] for row in rows} == {"web01   ", "東京01  ", "cafe\u0301    "}
    assert heading.index("STATE") == len("web01   ")


def test_what_is_shown_is_bounded() -> None:
    ok = Result("run.1", Outcome.SUCCEEDED, host="web01", exit_code=0)
    assert shown(*[ok] * (SHOWN_SUCCESSES + 1)) == ["SUCCESS: 21 succeeded of 21 hosts in 2.0 s"]
    bad = Result("run.2", Outcome.FAILED, host="web02", exit_code=3)
    kinds = [bad._replace(exit_code=number) for number in range(SHOWN_KINDS + 7)]
    assert shown(*kinds)[-2:] == [
        "… and 7 more failures: cronium history",
        "FAILED: 0 succeeded, 37 failed of 37 hosts in 2.0 s",
    ]
    stopped = Result("run.3", Outcome.REJECTED, host="web03", error_code="fanout.stopped", error_message="not begun")
    assert shown(ok, stopped, stopped, stopped=2)[-1].startswith("PARTIAL SUCCESS: 1 succeeded, 2 not begun of 3")


def test_hosts_that_failed_alike_are_one_row_with_the_first_ones_reason() -> None:
    refused = [
        Result(
            f"run.{number}",
            Outcome.UNKNOWN,
            host=f"web{number}",
            error_code="host.unreachable",
            error_message=f"web{number}: cannot connect to 10.0.0.{number}: Connection refused",
        )
        for number in (10, 9, 11, 8)
    ]
    hung = refused[0]._replace(host="web3", error_message="web3: cannot connect to 10.0.0.3: no answer in time")
    failed = [Result("run.5", Outcome.FAILED, host="db2", exit_code=3, duration_ms=90.0 + n) for n in range(4)]
    assert shown(*refused, hung, *failed)[1:-1] == [
        "web[8-11] (4)  unknown  -     -               -",
        "  web8: cannot connect to 10.0.0.8: Connection refused [host.unreachable]",
        "  → cronium doctor --host web8",
        "web3           unknown  -     -               -",
        "  cannot connect to 10.0.0.3: no answer in time [host.unreachable]",
        "  → cronium doctor --host web3",
        "db2 (4)        failed   3     90 ms to 93 ms  -",
        "  → cronium logs run.5",
    ]
    assert sorted(["web10", "web9", "a", "10.0.0.2", "9"], key=natural) == ["a", "web9", "web10", "9", "10.0.0.2"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.24, "240 ms"), (4.2, "4.2 s"), (187, "3:07 min"), (7500, "2:05:00 h")]
)
def test_times_are_as_people_read_them(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text
