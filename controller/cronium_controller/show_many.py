"""What `cronium run` shows of many hosts: their output as prefixed lines or folded, JSON lines, a table, Ctrl-C.

Standard output has what the hosts said, standard error how far it is and what came of it.
"""

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from cronium_runner.wire.names import STDOUT
from cronium_runner.wire.results import TEXT_TAIL, Outcome, Result, exit_status

from . import progress, show
from .execution import Piece
from .fanout import FanOut, Submitted
from .hosts import LOCAL, LOCAL_HOST, BadTarget, Host
from .interrupts import Interrupts
from .lines import BAR, Folder, PrefixedLines, without_bars
from .progress import Progress
from .schedule import STOPPED, Tally, counted, is_success
from .table import Table

if TYPE_CHECKING:
    from .attached import Attached
    from .runs import RunHost
    from .store import Record

PREFIX: Final = "prefix"
FOLD: Final = "fold"
JSON: Final = "json"
QUIET: Final = "quiet"
ENDINGS: Final = "endings"
"""A line for each as it ends, and nothing of what it printed."""
JSON_ENDINGS: Final = "json-endings"
"""The same as JSON."""


class Followed(Protocol):
    """What is shown: results as they come, and how far it is."""

    tally: Tally

    @property
    def total(self) -> int: ...
    @property
    def running(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[Result]: ...


class ManyHosts:
    """Shows one run on many hosts, to its end. `style` is PREFIX, FOLD, JSON, QUIET or ENDINGS."""

    def __init__(
        self,
        style: str,
        targets: Iterable[Host | BadTarget] = (),
        *,
        label: Callable[[Result], str] | None = None,
        noun: str = "hosts",
        is_own: bool = True,
    ) -> None:
        """`targets` are the hosts; `label` is what stands in front of a result's lines, its host by default.

        Only the JSON of a run itself (`is_own`) has the secrets that its scripts handed back.
        """
        self._is_own = is_own
        self._style = style
        self._noun = noun
        self._label = label or (lambda result: result.host or "")
        self._began = time.monotonic()
        self._turns = show.Turns()
        self._lines = PrefixedLines()
        self._tails: dict[str, dict[int, bytearray]] = {}
        self._folder = Folder()
        words = {target.name: _words(target) for target in targets}
        self._table = Table(where=lambda name: words.get(name, f"--host {name}"), label=self._label)
        self._stopped = 0
        self._many: Followed | None = None
        # Objects on a terminal are read as they are; in a file nobody sees them come.
        is_seen = style in (JSON, JSON_ENDINGS) and sys.stdout.isatty()
        self._progress = Progress(self._standing, is_wanted=style != QUIET and not is_seen)

    @property
    def output(self) -> Any:
        """What the fan-out is to call with output; None when nothing is done with it."""
        return None if self._style == QUIET else self._hear_host

    async def follow(self, many: FanOut) -> int:
        """Shows it all; the exit status. An interrupt ends it on the hosts, a second one leaves them to themselves."""

        def cancel() -> None:
            progress.say(f"cronium: cancelling on {counted(many.running)}; interrupt again not to wait for their end")
            many.cancel()

        def leave() -> None:
            show.leave()
            many.detach()

        with Interrupts(leave, cancel) as interrupts:
            if self._style != QUIET:
                click.echo(f"cronium: execution {many.id} on {counted(many.total)}", err=True)
            await self.show(many, many.id)
        if interrupts.has_left:
            click.echo(
                "cronium: left; what runs is being ended on its host. "
                f"Look again with: cronium attach {many.id}, or wait for its end with: cronium wait {many.id}",
                err=True,
            )
        return many.tally.exit_status

    async def show(self, many: Followed, execution_id: str | None) -> None:
        """Shows it all. `execution_id` names it in the summary of --json."""
        self._many = many
        async with self._progress:
            async for result in many:
                await self._end(result)
        if self._style == FOLD:
            await self._show_folds()
        self._finish(many, execution_id)

    async def hear(self, label: str, piece: Piece) -> None:
        """Output of whatever goes by this label."""
        match self._style:
            case "json":
                tail = self._tails.setdefault(label, {}).setdefault(piece.stream, bytearray())
                tail += piece.data
                del tail[:-TEXT_TAIL]
            case "fold":
                self._folder.feed(label, piece.stream, piece.data)
            case _:
                await self._write(piece.stream, self._lines.feed(label, piece.stream, piece.data))

    async def _hear_host(self, host: Host, piece: Piece) -> None:
        await self.hear(host.name, piece)

    async def _end(self, result: Result) -> None:
        label = self._label(result)
        self._stopped += result.error_code == STOPPED
        self._table.add(result)
        if self._style == JSON:
            show.print_result(result if self._is_own else result.hidden(), self._tails.pop(label, {}))
        elif self._style == JSON_ENDINGS:
            show.print_json(result.hidden().to_json())
        elif self._style == ENDINGS:
            with self._progress.aside():
                show.print_ending(result)
        elif self._style == FOLD and (result.error_code is None or self._folder.has_heard(label)):
            self._folder.end(label, _ending(result))
        for stream, rest in self._lines.end(label):
            await self._write(stream, rest)

    async def _write(self, stream: int, data: bytes) -> None:
        if data:
            await self._turns.write(stream, data)

    async def _show_folds(self) -> None:
        for fold in self._folder.folds():
            from .node_sets import folded

            ending = f", {fold.ending}" if fold.ending else ""
            head = f"{BAR}\n{folded(fold.hosts)} ({len(fold.hosts)}{ending})\n{BAR}\n"
            cut = "… cut here; the rest: cronium logs\n" if fold.is_cut else ""
            output = without_bars(fold.output) if os.isatty(1) else fold.output
            await show.write_lines(STDOUT, head.encode() + output + cut.encode())

    def _finish(self, many: Followed, execution_id: str | None) -> None:
        seconds = time.monotonic() - self._began
        if self._style in (JSON, JSON_ENDINGS):
            show.print_json(summary_json(many.tally, execution_id, seconds))
        elif self._style != QUIET or many.tally.failed:
            for line in self._table.lines(many.tally, _paint, seconds, stopped=self._stopped, noun=self._noun):
                click.echo(line, err=True)

    def _standing(self) -> str:
        many = self._many
        if many is None:
            return ""
        tally, total = many.tally, many.total
        failed = f" · {tally.failed} failed" if tally.failed else ""
        done = tally.succeeded + tally.failed
        return f"{done}/{total} {self._noun} · {many.running} running · {tally.succeeded} succeeded{failed}"


def _ending(result: Result) -> str:
    """How a host ended that did not succeed, in a word or two."""
    if is_success(result):
        return ""
    if result.state is not Outcome.FAILED:
        return result.state.value.replace("_", " ")
    return f"exit {result.exit_code}" if result.signal is None else f"signal {result.signal}"


def _words(target: Host | BadTarget) -> str:
    """What means this host on the command line: its name in the hosts file, or its address."""
    if isinstance(target, BadTarget):
        return f"--on {target.name}"
    if target.is_local and target.name == LOCAL_HOST.name:
        return f"--host {LOCAL}"
    if target.name not in (target.address, f"{target.address}:{target.port}", f"[{target.address}]:{target.port}"):
        return f"--on {target.name}"
    return f"--host {f'{target.user}@' if target.user else ''}{target.name}"


def summary_json(tally: Tally, execution_id: str | None, seconds: float | None) -> dict[str, Any]:
    """The last line of --json for several hosts."""
    return {
        "summary": True,
        "executionId": execution_id,
        "verdict": tally.verdict.value,
        "hosts": tally.succeeded + tally.failed,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "states": tally.states,
        "exitStatus": tally.exit_status,
        "durationMs": None if seconds is None else round(seconds * 1000, 1),
    }


def _paint(text: str, colour: str) -> str:
    """In colour on a terminal whose user wants it (no-color.org)."""
    if os.environ.get("NO_COLOR") or not progress.is_terminal():
        return text
    return click.style(text, fg=colour)


async def follow_attached(many: "Attached", run_hosts: "Sequence[RunHost]", style: str, run_id: str | None) -> int:
    """Shows executions of earlier processes, to their end; the exit status. An interrupt is the caller's matter."""
    from .attached import labels
    from .open_files import make_room

    hosts = list({host.record.host for host in run_hosts if host.record is not None})
    make_room(len(hosts))  # a connection to each is kept while we wait
    called = labels(run_hosts)

    def label(result: Result) -> str:
        return called.get((result.execution_id, result.host or ""), result.host or "")

    shown = ManyHosts(style, hosts, label=label, noun="executions", is_own=False)

    async def hear(record: "Record", piece: Piece) -> None:
        await shown.hear(called[record.id, record.host.name], piece)

    many.output = hear if style in (PREFIX, JSON) else None
    await shown.show(many, run_id)
    return many.tally.exit_status


async def leave_running(many: FanOut, *, as_json: bool) -> int:
    """Submits on all hosts and says where that failed, how to come back, and the id; the exit status."""
    click.echo(f"cronium: execution {many.id} on {counted(many.total)}", err=True)
    tally, needs_us = Tally(), False

    def standing() -> str:
        failed = f" · {tally.failed} failed" if tally.failed else ""
        return f"{tally.succeeded + tally.failed}/{counted(many.total)} · {tally.succeeded} submitted{failed}"

    async with Progress(standing, is_wanted=not as_json):
        async for submitted in many.submit_only():
            tally.note(0 if submitted.failure is None else exit_status(submitted.failure), ok=submitted.failure is None)
            needs_us = needs_us or submitted.needs_us
            with progress.aside():
                _print_submitted(submitted, as_json=as_json)
    if needs_us:
        click.echo(
            "cronium: warning: nothing serves them now; writes are kept there, and reads fail, until: "
            f"cronium wait {many.id}",
            err=True,
        )
    click.echo(
        f"cronium: submitted on {tally.succeeded} of {counted(many.total)}; results with: cronium wait {many.id}",
        err=True,
    )
    if as_json:
        show.print_json({"summary": True, "executionId": many.id, "hosts": many.total, "accepted": tally.succeeded})
    else:
        click.echo(many.id)
    return tally.exit_status


def _print_submitted(submitted: Submitted, *, as_json: bool) -> None:
    failure = submitted.failure
    if failure is not None and not as_json:
        click.echo(f"cronium: {failure.error_message} [{failure.error_code}]", err=True)
    elif failure is not None:
        show.print_result(failure, {})
    elif as_json:
        show.print_json({"executionId": submitted.execution_id, "host": submitted.host, "state": "accepted"})
