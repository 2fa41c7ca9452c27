"""What `cronium run` shows of many hosts: their output as prefixed lines or folded, JSON lines, a table, Ctrl-C.

Standard output has what the hosts said, standard error how far it is and what came of it.
"""

import asyncio
import os
import signal
import sys
import time
from typing import Any, Final

import click

from cronium_runner.wire.names import STDOUT
from cronium_runner.wire.results import TEXT_TAIL, Result, exit_status

from . import show
from .execution import Piece
from .fanout import STOPPED, FanOut
from .hosts import Host
from .lines import Folder, Prefixer
from .progress import Progress
from .schedule import Tally
from .table import Table

PREFIX: Final = "prefix"
FOLD: Final = "fold"
JSON: Final = "json"
QUIET: Final = "quiet"


class ManyHosts:
    """Shows one fan-out, to its end. `style` is PREFIX, FOLD, JSON or QUIET."""

    def __init__(self, style: str) -> None:
        self._style = style
        self._began = time.monotonic()
        self._prefixers: dict[str, dict[int, Prefixer]] = {}
        self._tails: dict[str, dict[int, bytearray]] = {}
        self._folder = Folder()
        self._table = Table()
        self._stopped = 0
        self._many: FanOut | None = None
        self._progress = Progress(self._standing, is_wanted=style not in (JSON, QUIET))

    @property
    def output(self) -> Any:
        """What the fan-out is to call with output; None when nothing is done with it."""
        return None if self._style == QUIET else self._hear

    async def follow(self, many: FanOut) -> int:
        """Shows it all; the exit status."""
        self._many = many
        if self._style != QUIET:
            click.echo(f"cronium: execution {many.id} on {many.total} hosts", err=True)
        with _Interrupts(many) as interrupts:
            async with self._progress:
                async for result in many:
                    await self._end(result)
        if self._style == FOLD:
            await self._show_folds()
        self._finish(many)
        if interrupts.has_left:
            click.echo(
                f"cronium: left; what runs goes on. Wait for it with: cronium wait {many.id}, "
                f"end it with: cronium cancel {many.id}",
                err=True,
            )
        return many.tally.exit_status

    async def _hear(self, host: Host, piece: Piece) -> None:
        match self._style:
            case "json":
                tail = self._tails.setdefault(host.name, {}).setdefault(piece.stream, bytearray())
                tail += piece.data
                del tail[:-TEXT_TAIL]
            case "fold":
                self._folder.feed(host.name, piece.data)
            case _:
                prefixers = self._prefixers.setdefault(host.name, {})
                if piece.stream not in prefixers:
                    prefixers[piece.stream] = Prefixer(f"{host.name}: ".encode())
                await self._write(piece.stream, prefixers[piece.stream].feed(piece.data))

    async def _end(self, result: Result) -> None:
        name = result.host or ""
        self._stopped += result.error_code == STOPPED
        self._table.add(result)
        if self._style == JSON:
            show.print_result(result, self._tails.pop(name, {}))
        elif self._style == FOLD and result.error_code is None:
            self._folder.end(name, exit_status(result))
        for stream, prefixer in self._prefixers.pop(name, {}).items():
            await self._write(stream, prefixer.flush())

    async def _write(self, stream: int, data: bytes) -> None:
        if data:
            with self._progress.aside():
                await show.write(stream, data)

    async def _show_folds(self) -> None:
        for fold in self._folder.folds():
            from .node_sets import folded

            status = "" if fold.exit_status == 0 else f", exit {fold.exit_status}"
            bar = "-" * 15
            head = f"{bar}\n{folded(fold.hosts)} ({len(fold.hosts)}{status})\n{bar}\n"
            cut = "… cut here; the rest: cronium logs\n" if fold.is_cut else ""
            body = fold.output if not fold.output or fold.output.endswith(b"\n") else fold.output + b"\n"
            await show.write(STDOUT, head.encode() + body + cut.encode())

    def _finish(self, many: FanOut) -> None:
        seconds = time.monotonic() - self._began
        if self._style == JSON:
            show.print_json(summary_json(many.tally, many.id, seconds))
        elif self._style != QUIET or many.tally.failed:
            for line in self._table.lines(many.tally, _paint, seconds, stopped=self._stopped):
                click.echo(line, err=True)

    def _standing(self) -> str:
        many = self._many
        if many is None:
            return ""
        tally, total = many.tally, many.total
        failed = f" · {tally.failed} failed" if tally.failed else ""
        done = tally.succeeded + tally.failed
        return f"{done}/{total} hosts · {many.running} running · {tally.succeeded} succeeded{failed}"


def summary_json(tally: Tally, execution_id: str, seconds: float) -> dict[str, Any]:
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
        "durationMs": round(seconds * 1000, 1),
    }


def _paint(text: str, colour: str) -> str:
    """In colour on a terminal whose user wants it (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty():
        return text
    return click.style(text, fg=colour)


class _Interrupts:
    """While it is entered, the first SIGINT or SIGTERM cancels on the hosts, a second one leaves them to themselves."""

    def __init__(self, many: FanOut) -> None:
        self._many = many
        self._is_cancelled = False
        self.has_left = False

    def __enter__(self) -> "_Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _hear(self) -> None:
        if self._is_cancelled:
            self.has_left = True
            self._many.detach()
            return
        self._is_cancelled = True
        sentence = f"cancelling on {self._many.running} hosts; interrupt again not to wait for their end"
        click.echo(f"\ncronium: {sentence}", err=True)
        self._many.cancel()
