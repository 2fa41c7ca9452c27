"""What the `cronium` command shows of one execution: its bytes as they come, its result, and what Ctrl-C means."""

import asyncio
import codecs
import contextlib
import datetime
import itertools
import os
import select
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from cronium_runner.wire import exactjson, masks
from cronium_runner.wire.names import STDERR, STDOUT, STREAM_NAMES
from cronium_runner.wire.results import EXIT_RUNNER_FAILED, TEXT_TAIL, Outcome, Result, exit_status
from cronium_runner.wire.sizes import readable
from cronium_runner.wire.text import clean, clean_json, clean_lines

from . import progress, standard_streams
from .errors import ChannelLostError
from .interrupts import Interrupts
from .schedule import STOPPED, counted
from .store import Record
from .widths import aligned, padded

if TYPE_CHECKING:
    from .doctor import Finding
    from .execution import Execution

_QUIET: Final = (Outcome.SUCCEEDED, Outcome.FAILED)
_NEVER_STARTED: Final = frozenset(str(each) for each in Outcome if each.is_unstarted or each is Outcome.REJECTED)
Writing = Callable[[int, bytes], Awaitable[None]]
COLLECTED: Final = "execution.collected"
_ID_COLUMNS: Final = 46
"""Of an id that we made, with what each of several hosts adds to it."""
_DESCRIPTORS: Final = {STDOUT: 1, STDERR: 2}
_LINES_AT_ONCE: Final = 500
_gone: set[int] = set()
LOOKED_AFTER: Final = 0.25
"""Seconds after which a write that finds no room looks whether anybody still waits for it."""
_NOWHERE: Final = os.makedev(1, 3)
"""/dev/null on Linux."""
_has_left = False


def interrupts(execution: "Execution", *, can_cancel: bool) -> Interrupts:
    """What an interrupt does to an execution: it is ended on its host, and a second one stops waiting for that.

    Without `can_cancel` the first one stops waiting, and it goes on.
    """

    def cancel() -> None:
        click.echo("cronium: cancelling on the host; interrupt again not to wait for its end", err=True)
        with contextlib.suppress(ChannelLostError):  # then the output ends, too, and says so
            execution.cancel()

    def stop_waiting() -> None:
        leave()
        execution.leave()

    return Interrupts(stop_waiting, cancel if can_cancel else None)


async def follow(execution: "Execution", *, as_json: bool, verbose: bool = False, is_own: bool = True) -> int:
    """Shows the output as it comes, then the result; returns the exit status. Ends early when the execution is left.

    Only the JSON of a run itself (`is_own`) has the secrets that its script handed back.
    """
    tails = {stream: bytearray() for stream in STREAM_NAMES}
    async for piece in execution.pieces():
        if as_json:
            tails[piece.stream] += piece.data
            del tails[piece.stream][:-TEXT_TAIL]
        else:
            await write(piece.stream, piece.data)
    if execution.is_left and execution.known_result is None:
        what = "it is being ended on the host" if execution.is_cancelled else "it goes on"
        sentence = f"left; {what}. Look again with: cronium attach {execution.id}"
        return print_left(execution.id, execution.host.name, sentence, tails, as_json=as_json)
    result = await execution.result()
    if verbose:
        print_summary(result)
    if as_json:
        print_result(result if is_own else result.hidden(), tails)
    elif result.state not in _QUIET or result.error_message is not None:
        click.echo(f"cronium: {execution.host}: {result.error_message or result.state} [{result.error_code}]", err=True)
    return exit_status(result)


async def print_pieces(execution: "Execution", *, only: str | None, raw: bool, put: Writing | None = None) -> int:
    """Prints what an execution has written; the exit status says whether that was all there is.

    `put` takes it instead of our own streams.
    """
    put = put or write
    decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in STREAM_NAMES}
    async for piece in execution.pieces():
        if only is None or STREAM_NAMES[piece.stream] == only:
            await put(piece.stream, piece.data if raw else decoders[piece.stream].decode(piece.data).encode())
    for stream, decoder in decoders.items():  # a character that was cut off at the end is shown as one, too
        if rest := decoder.decode(b"", final=True):
            await put(stream, rest.encode())
    result = execution.known_result
    if result is None or not (result.state is Outcome.UNKNOWN or result.error_code == COLLECTED):
        return 0
    click.echo(f"cronium: {result.error_message} [{result.error_code}]", err=True)
    return EXIT_RUNNER_FAILED if result.error_code == COLLECTED else exit_status(result)


async def write_lines(stream: int, lines: bytes) -> None:
    """As `write`, for lines of several hosts: on a terminal none of them moves the cursor or erases another one."""
    await write(stream, clean_lines(lines) if os.isatty(_DESCRIPTORS[stream]) else lines)


async def write(stream: int, data: bytes) -> None:
    """Writes to our own stream of the same name, without blocking the connection's housekeeping.

    A reader that has gone away ends the showing, not the execution.
    """
    descriptor = _DESCRIPTORS[stream]
    if descriptor in _gone:
        return
    try:
        await asyncio.to_thread(_write_all, descriptor, data)
    except OSError as error:
        _gone.add(descriptor)
        lost = standard_streams.failed(error) if stream == STDOUT else None
        if lost is not None:
            click.echo(f"cronium: {lost.message} [{lost.code}]", err=True)


def leave() -> None:
    """From now on nobody waits for a reader that takes nothing; what it would have got is dropped."""
    global _has_left
    _has_left = True


class Turns:
    """Lines of several at once, one write after the other.

    A pipe takes what it has room for, and a second writer's bytes would come into the middle of the first one's line.
    Both streams share the turns: they may be one file (`2>&1`).
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def write(self, stream: int, data: bytes) -> None:
        """As `write_lines`, when those before have been written."""
        async with self._turn:
            with progress.aside():
                await write_lines(stream, data)


def print_start(execution: "Execution", *, verbose: bool) -> None:
    """Says under which id it runs, where a person looks on; and always when nothing was started for it."""
    if execution.was_started is False:
        click.echo(f"cronium: '{execution.id}' was submitted before; this is that execution", err=True)
    elif verbose or sys.stderr.isatty():
        click.echo(f"cronium: execution {execution.id} on {execution.host}", err=True)
    if execution.fallback is not None:
        code, message = execution.fallback
        click.echo(f"cronium: warning: executed in bundled mode: {message} [{code}]", err=True)


def print_summary(result: Result) -> None:
    """How it ended and what the script handed back, for a person, on standard error."""
    result = result.hidden()
    ending = f"signal {result.signal}" if result.signal is not None else f"exit {result.exit_code}"
    took = "" if result.duration_ms is None else f" after {result.duration_ms:.0f} ms"
    click.echo(f"cronium: {result.state} ({ending}){took}", err=True)
    if result.output is not None:
        click.echo(f"cronium: output {clean_json(exactjson.dumps(result.output))}", err=True)
    for name, value in result.variables.items():
        told = "***" if masks.is_masked_name(name) else clean_json(exactjson.dumps(value))
        click.echo(f"cronium: variable {clean(name)} = {told}", err=True)
    if result.condition is not None:
        click.echo(f"cronium: condition {str(result.condition).lower()}", err=True)


def print_result(result: Result, tails: Mapping[int, bytes | bytearray]) -> None:
    """The result as --json shows it: with the end of each stream as text."""
    shown = result.to_json()
    for stream, name in STREAM_NAMES.items():
        shown[name]["text"] = bytes(tails.get(stream, b"")).decode("utf-8", "replace")
    print_json(shown)


def print_left(
    execution_id: str,
    host: str | None,
    sentence: str,
    tails: Mapping[int, bytes | bytearray],
    *,
    as_json: bool,
    state: Outcome = Outcome.UNKNOWN,
) -> int:
    """Says that we left before the end was known; the exit status for that."""
    code = STOPPED if state is Outcome.SKIPPED else "channel.lost"
    told = Result(execution_id, state, host=host, error_code=code, error_message=sentence)
    if as_json:
        print_result(told, tails)
    click.echo(f"cronium: {sentence}", err=True)
    return exit_status(told)


def print_history(records: Iterable[Record]) -> None:
    """A line for each execution that was submitted from here, the newest first."""
    rows = [("EXECUTION", "HOST", "STATE", "SUBMITTED", "WHAT")]
    for record in records:
        submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.submitted_at))
        rows.append((record.id, record.host.name, record.state, submitted, record.label))
    for line in aligned(rows):
        click.echo(line)


def print_ending(result: Result) -> None:
    """How one execution ended, in one line."""
    ending = "" if result.exit_code is None else f", exit {result.exit_code}"
    if result.signal is not None:
        ending = f", signal {result.signal}"
    reason = "" if result.error_message is None else f"; {result.error_message} [{result.error_code}]"
    click.echo(f"{result.execution_id} on {result.host}: {result.state}{ending}{reason}")


def print_executions(statuses: Iterable[dict[str, Any]], *, host: str | None = None, has_head: bool = True) -> None:
    """A line for each execution that a host has: id, state, age, bytes of output. `host` for one of several."""
    first, head = ("", "") if host is None else (f"{padded(host, 24)} ", f"{'HOST':<24} ")
    if has_head:
        click.echo(f"{head}{'EXECUTION':<{_ID_COLUMNS}} {'STATE':<12} {'AGE':>6} {'BYTES':>12}  KEPT")
    lines = (f"{first}{_execution_line(status)}" for status in statuses)
    # In blocks: each write of thousands of lines would be a system call, and a lock of the stream.
    while block := list(itertools.islice(lines, _LINES_AT_ONCE)):
        click.echo("\n".join(block))


def _execution_line(status: Mapping[str, Any]) -> str:
    state = (status.get("result") or {}).get("state", status.get("state"))
    size = sum((status.get(name) or {}).get("bytes", 0) for name in STREAM_NAMES.values())
    age = _age(status.get("claimedAt"))
    return f"{status['executionId']:<{_ID_COLUMNS}} {state:<12} {age:>6} {size:>12}  {_kept(status)}"


def _kept(status: Mapping[str, Any]) -> str:
    """Why a host still has it."""
    if status.get("collected"):
        return "its ending only"
    if not status.get("result"):
        return "runs" if status.get("error") is None else str(status["error"].get("message"))
    return "for its age" if status.get("acknowledged") else "result not fetched"


def _age(claimed_at: object) -> str:
    """How long ago, by our clock: 45s, 12m, 3h or 8d."""
    try:
        then = datetime.datetime.fromisoformat(f"{str(claimed_at)[:19]}+00:00").timestamp()
    except ValueError:
        return "-"
    seconds = max(0, int(time.time() - then))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def print_collection(told: Mapping[str, Any], host: str | None = None) -> None:
    """What a host's collection removed, or would remove, what is left, and why. `host` for one of several."""
    first = "" if host is None else f"{host}: "
    would, left = ("would remove", "would be left") if told.get("isDryRun") else ("removed", "left")
    would = f"{first}{would}"
    gone, used, budget = told["collected"], told["usedBytes"], told["budgetBytes"]
    for execution_id in gone:
        click.echo(f"{would} {execution_id}")
    went = f"{counted(len(gone), 'executions')} and {counted(len(told['payloads']), 'payloads')}"
    click.echo(f"{would} {went}: {readable(told['freedBytes'])}")
    click.echo(
        f"{first}{left}: {told['running']} running, {told['kept']} ended ({told['unacknowledged']} not fetched), "
        f"{told['tombstones']} of which only the ending is left; {readable(used)} of {readable(budget)}"
    )
    for execution_id, reason in told.get("failed", {}).items():
        click.echo(f"cronium: {first}{execution_id} could not be removed: {reason}", err=True)
    if used > budget:
        advice = "what runs and the endings stay, so that no id starts twice; give it a larger budget"
        if told["unacknowledged"]:
            advice = (
                "fetch results with `cronium wait`, or give those up that nobody fetches: "
                "--unacknowledged-older-than DAYS"
            )
        click.echo(
            f"cronium: {first}{readable(used - budget)} over the budget, and nothing more may go; {advice}", err=True
        )


def print_uninstalled(told: Mapping[str, Any], host: str | None = None) -> None:
    """What was removed of a host's runners and records, and what stays and why. `host` for one of several."""
    first = "" if host is None else f"{host}: "
    removed, records = "would remove" if told["isDryRun"] else "removed", told["records"]
    lines = [f"{removed} {path}" for path in told["removed"]]
    lines += [f"kept {path}: {reason}" for path, reason in told["kept"].items()]
    if records is not None:
        said = f"{records['running']} not ended, {records['unfetched']} not fetched"
        lines.append(f"{removed} {counted(records['executions'], 'executions')} ({said}) in {records['path']}")
        lines += [f"kept {records['path']}/{name}: not the runner's" for name in records["kept"]]
    for line in lines or ["nothing is installed"]:
        click.echo(clean(f"{first}{line}"))


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, one line, on standard output, without a character that a terminal obeys."""
    sys.stdout.buffer.write(clean_json(exactjson.encode(value).decode()).encode() + b"\n")
    sys.stdout.buffer.flush()


def print_finding(finding: "Finding", host: str | None = None) -> None:
    """One finding about a host, and what to do about it below. `host` for one of several."""
    first = "" if host is None else f"{host}: "
    click.echo(f"{first}{finding.level:<5} {finding.name:<28} {finding.seen}")
    if finding.advice:
        click.echo(f"{first}{'':<34} → {finding.advice}")


def print_status(status: dict[str, Any], where: object) -> None:
    """How an execution stands, in one line; `where` is its host."""
    result = status["result"] or {}
    ending = ""
    if result.get("exitCode") is not None:
        ending = f", exit {result['exitCode']}"
    elif result.get("signal") is not None:
        ending = f", signal {result['signal']}"
    sizes = f"{status['stdout']['bytes']} bytes on stdout, {status['stderr']['bytes']} on stderr"
    state = result.get("state", status["state"])
    click.echo(f"{status['executionId'] or '-'} on {where}: {state}{ending}; {sizes}")
    error = result.get("error")
    if error is not None and (status.get("collected") or state in _NEVER_STARTED):
        click.echo(f"cronium: {error['message']} [{error['code']}]", err=True)


def _write_all(descriptor: int, data: bytes) -> None:
    """In pieces that a pipe with room for any takes whole: a thread that is stuck in a write could never be left."""
    view = memoryview(data)
    most = len(data) if _never_waits(descriptor) else select.PIPE_BUF
    while view:
        if select.select([], [descriptor], [], LOOKED_AFTER)[1]:
            view = view[os.write(descriptor, view[:most]) :]
        elif _has_left:
            _gone.add(descriptor)
            return


def _never_waits(descriptor: int) -> bool:
    """Whether a write waits for no reader: it goes to a file, or nowhere. A piece is then one call instead of 64."""
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) or (stat.S_ISCHR(found.st_mode) and found.st_rdev == _NOWHERE)
