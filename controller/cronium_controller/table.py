"""The table at the end of a run on many hosts: state, exit status, duration, route; for each failure why and what
next.

Text in lines; where it goes is the caller's matter. Failures that differ in names and numbers only are one row, with
all its hosts and the first one's reason: a hundred times the same sentence is read by nobody. Of those that succeeded
rows are kept only as long as they are few enough to be shown.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cronium_runner.wire.results import Outcome, Result

from .progress import elapsed
from .schedule import STOPPED, Tally, counted, is_success
from .widths import aligned

SHOWN_SUCCESSES: Final = 20
"""With more, those that succeeded are a count: a screen has 24 lines, and the failures are what is looked for."""
SHOWN_KINDS: Final = 30
"""Kinds of failure. With more, the last ones are a count; `cronium history` and `--json` have all."""
ALIKE: Final = 4
"""So many hosts that failed alike are one row; fewer have one each."""
_LONGEST_HOSTS: Final = 48
"""Characters of a row's hosts: beside the other columns they leave a line of 80 whole."""
_COLOURS: Final = {
    Outcome.SUCCEEDED: "green",
    Outcome.UNKNOWN: "yellow",
    Outcome.CANCELLED: "yellow",
    Outcome.UNREACHABLE: "yellow",
    Outcome.SKIPPED: "yellow",
}
_HEADER: Final = ("STATE", "EXIT", "TIME", "ROUTE")


@dataclass(slots=True)
class Row:
    """A line of the table, and the sentences below it."""

    label: str
    host: str
    state: Outcome
    ending: str
    milliseconds: float | None
    way: str
    why: str | None
    next_step: str | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for failures of one kind: words with a digit are addresses, ports, fingerprints, times."""
        why = self.why and self.why.replace(self.host, "#").replace(self.label, "#")
        return (self.state, self.ending, why and re.sub(r"\S*\d\S*", "#", why))

    def cells(self) -> tuple[str, ...]:
        """The line's words."""
        return (self.label, self.state.value, self.ending, _took([self]), self.way)


@dataclass(slots=True)
class _Kind:
    """Failures that are alike."""

    rows: list[Row] = field(default_factory=list)

    def lines(self) -> Iterator[tuple[tuple[str, ...], Row]]:
        """The words of each line, and whose reason stands below it."""
        self.rows.sort(key=lambda each: natural(each.label))
        if len(self.rows) < ALIKE:
            yield from ((each.cells(), each) for each in self.rows)
            return
        from .node_sets import folded

        first = self.rows[0]
        hosts = folded([each.label for each in self.rows])
        if len(hosts) > _LONGEST_HOSTS:
            hosts = f"{hosts[: _LONGEST_HOSTS - 1]}…"
        ways = {each.way for each in self.rows}
        way = ways.pop() if len(ways) == 1 else "-"
        yield (f"{hosts} ({len(self.rows)})", first.state.value, first.ending, _took(self.rows), way), first


class Table:
    """Takes results as they come. `successes`: of how many hosts that succeeded each gets a line.

    `where` are the words that mean a host on the command line; `label` is what a result goes by, its host by default.
    """

    def __init__(
        self,
        successes: int = SHOWN_SUCCESSES,
        *,
        where: Callable[[str], str] = lambda name: f"--host {name}",
        label: Callable[[Result], str] = lambda result: result.host or "-",
    ) -> None:
        self._successes = successes
        self._where = where
        self._label = label
        self._head = "HOST"
        self._succeeded: list[Row] = []
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._more = 0

    def add(self, result: Result) -> None:
        """Notes what has to be shown of one host."""
        if is_success(result):
            if len(self._succeeded) <= self._successes:
                self._succeeded.append(self._row(result))
        elif result.error_code != STOPPED:
            self._add_failure(self._row(result))

    def _row(self, result: Result) -> Row:
        label = self._label(result)
        if label == result.execution_id:
            self._head = "EXECUTION"
        return row(result, self._where, label)

    def _add_failure(self, failed: Row) -> None:
        if failed.kind not in self._kinds and len(self._kinds) >= SHOWN_KINDS:
            self._more += 1
            return
        self._kinds.setdefault(failed.kind, _Kind()).rows.append(failed)

    def lines(
        self, tally: Tally, paint: Callable[[str, str], str], total: float, *, stopped: int, noun: str = "hosts"
    ) -> Iterator[str]:
        """All of it; `paint(text, colour)` colours, `total` is seconds, `stopped` hosts were never begun."""
        succeeded = self._succeeded if len(self._succeeded) <= self._successes else []
        lines = [(each.cells(), each) for each in sorted(succeeded, key=lambda each: natural(each.label))]
        for kind in self._kinds.values():
            lines += kind.lines()
        if lines:
            yield from _table(self._head, lines, paint)
        if self._more:
            yield f"… and {self._more} more failures: cronium history"
        yield summary(tally, total, stopped=stopped, noun=noun)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts web2 before web10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]


def row(result: Result, where: Callable[[str], str], label: str) -> Row:
    """One host's line, or one execution's."""
    ending = "-" if result.exit_code is None else str(result.exit_code)
    if result.signal is not None:
        ending = f"sig {result.signal}"
    why = None if result.error_message is None else f"{_without_host(result)} [{result.error_code}]"
    way, next_step = result.transport or "-", _next_step(result, where)
    return Row(label, result.host or "-", result.state, ending, result.duration_ms, way, why, next_step)


def _took(rows: list[Row]) -> str:
    took = [each.milliseconds / 1000 for each in rows if each.milliseconds is not None]
    if not took:
        return "-"
    shortest, longest = elapsed(min(took)), elapsed(max(took))
    return longest if shortest == longest else f"{shortest} to {longest}"


def summary(tally: Tally, seconds: float, *, stopped: int, noun: str = "hosts") -> str:
    """All hosts in one line."""
    told = [f"{tally.succeeded} succeeded"]
    if tally.failed - stopped:
        told.append(f"{tally.failed - stopped} failed")
    if stopped:
        told.append(f"{stopped} not begun")
    of_all = counted(tally.succeeded + tally.failed, noun)
    return f"{tally.verdict.value}: {', '.join(told)} of {of_all} in {elapsed(seconds)}"


def _table(head: str, lines: list[tuple[tuple[str, ...], Row]], paint: Callable[[str, str], str]) -> Iterator[str]:
    header, *texts = aligned([(head, *_HEADER), *(cells for cells, _ in lines)])
    yield header
    for text, (cells, each) in zip(texts, lines, strict=True):
        yield paint(text, _COLOURS.get(each.state, "red"))
        # Of several hosts, the reason is the first one's.
        whose = "" if cells[0] == each.label or each.why is None else f"{each.label}: "
        for sentence in (each.why and f"{whose}{each.why}", each.next_step and f"→ {each.next_step}"):
            if sentence:
                yield f"  {sentence}"


def _without_host(result: Result) -> str:
    return (result.error_message or "").removeprefix(f"{result.host}: ")


def _next_step(result: Result, where: Callable[[str], str]) -> str | None:
    """What to do where the error doesn't say it."""
    if is_success(result):
        return None
    if result.error_code == "host.unreachable":
        return f"cronium doctor {where(result.host or '')}"
    if result.error_message is None and result.execution_id:
        return f"cronium logs {result.execution_id}"
    return None
