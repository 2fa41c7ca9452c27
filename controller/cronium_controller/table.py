"""The table at the end of a run on many hosts: state, exit status, duration, way; for each failure why, and what next.

Text in lines; where it goes is the caller's matter. Keeps a row for each failure, and for the others only as long as
they are few enough to be shown.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cronium_runner.wire.results import Outcome, Result

from .progress import elapsed
from .schedule import Tally, is_success

SHOWN_SUCCESSES: Final = 20
"""With more, those that succeeded are a count: a screen has 24 lines, and the failures are what is looked for."""
SHOWN_FAILURES: Final = 100
"""With more, the last ones are a count; `cronium history` and `--json` have all."""
_COLOURS: Final = {Outcome.SUCCEEDED: "green", Outcome.UNKNOWN: "yellow", Outcome.CANCELLED: "yellow"}
_STOPPED: Final = "fanout.stopped"
_HEADER: Final = ("HOST", "STATE", "EXIT", "TIME", "WAY")


class Row(NamedTuple):
    """A line of the table, and the sentences below it."""

    state: Outcome
    cells: tuple[str, ...]
    why: str | None
    next_step: str | None


class Table:
    """Takes results as they come."""

    def __init__(self) -> None:
        self._succeeded: list[Row] = []
        self._failed: list[Row] = []

    def add(self, result: Result) -> None:
        """Notes what has to be shown of one host."""
        rows, most = (self._succeeded, SHOWN_SUCCESSES) if is_success(result) else (self._failed, SHOWN_FAILURES)
        if len(rows) <= most and result.error_code != _STOPPED:
            rows.append(row(result))

    def lines(self, tally: Tally, paint: Callable[[str, str], str], total: float, *, stopped: int) -> Iterator[str]:
        """All of it; `paint(text, colour)` colours, `total` is seconds, `stopped` hosts were never begun."""
        succeeded = self._succeeded if len(self._succeeded) <= SHOWN_SUCCESSES else []
        rows = [*succeeded, *self._failed[:SHOWN_FAILURES]]
        if rows:
            yield from _table(rows, paint)
        more = tally.failed - stopped - len(self._failed[:SHOWN_FAILURES])
        if more > 0:
            yield f"… and {more} more failures: cronium history"
        yield summary(tally, total, stopped=stopped)


def row(result: Result) -> Row:
    """One host's line."""
    ending = "-" if result.exit_code is None else str(result.exit_code)
    if result.signal is not None:
        ending = f"sig {result.signal}"
    took = "-" if result.duration_ms is None else elapsed(result.duration_ms / 1000)
    cells = (result.host or "-", result.state.value, ending, took, result.transport or "-")
    why = None if result.error_message is None else f"{_without_host(result)} [{result.error_code}]"
    return Row(result.state, cells, why, _next_step(result))


def summary(tally: Tally, seconds: float, *, stopped: int) -> str:
    """All hosts in one line."""
    told = [f"{tally.succeeded} succeeded"]
    if tally.failed - stopped:
        told.append(f"{tally.failed - stopped} failed")
    if stopped:
        told.append(f"{stopped} not begun")
    return f"{tally.verdict.value}: {', '.join(told)} of {tally.succeeded + tally.failed} hosts in {elapsed(seconds)}"


def _table(rows: list[Row], paint: Callable[[str, str], str]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(_HEADER, *(row.cells for row in rows), strict=True)]
    yield _line(_HEADER, widths)
    for each in rows:
        yield paint(_line(each.cells, widths), _COLOURS.get(each.state, "red"))
        for sentence in (each.why, each.next_step and f"→ {each.next_step}"):
            if sentence:
                yield f"  {sentence}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _without_host(result: Result) -> str:
    return (result.error_message or "").removeprefix(f"{result.host}: ")


def _next_step(result: Result) -> str | None:
    """What to do where the error doesn't say it."""
    if is_success(result):
        return None
    if result.error_code == "host.unreachable":
        return f"cronium doctor --host {result.host}"
    if result.error_message is None and result.execution_id:
        return f"cronium logs {result.execution_id}"
    return None
