"""What the `cronium` command shows of one execution: its bytes as they come, its result, and what Ctrl-C means."""

import asyncio
import codecs
import os
import signal
import sys
from typing import Any, Final

import click

from cronium_runner.wire import exactjson
from cronium_runner.wire.names import STDERR, STDOUT, STREAM_NAMES
from cronium_runner.wire.results import EXIT_CANCELLED, Outcome, exit_status

from .dispatch import Execution
from .hosts import Host

TEXT_TAIL: Final = 64 * 1024
"""Bytes of each stream that --json shows as text (contracts §6)."""

_QUIET: Final = (Outcome.SUCCEEDED, Outcome.FAILED)
_gone: set[int] = set()


async def follow(execution: Execution, *, as_json: bool) -> int:
    """Shows the output as it comes, then the result; returns the exit status.

    An interrupt cancels the execution on the host and waits for its end; a second one leaves it running.
    """
    interrupts = _Interrupts(execution)
    tails = {stream: bytearray() for stream in STREAM_NAMES}
    with interrupts:
        async for piece in execution.pieces():
            if as_json:
                tails[piece.stream] += piece.data
                del tails[piece.stream][:-TEXT_TAIL]
            else:
                await write(piece.stream, piece.data)
            if interrupts.has_left:
                break
    if interrupts.has_left:
        click.echo(f"cronium: left it running; attach with: cronium attach {execution.id}", err=True)
        return EXIT_CANCELLED
    result = await execution.result()
    if as_json:
        shown = result.to_json()
        for stream, name in STREAM_NAMES.items():
            shown[name]["text"] = tails[stream].decode("utf-8", "replace")
        print_json(shown)
    elif result.state not in _QUIET or result.error_message is not None:
        click.echo(f"cronium: {execution.host}: {result.error_message or result.state} [{result.error_code}]", err=True)
    return exit_status(result)


async def print_pieces(execution: Execution, *, only: str | None, raw: bool) -> None:
    """Prints what an execution has written."""
    decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in STREAM_NAMES}
    async for piece in execution.pieces():
        if only is None or STREAM_NAMES[piece.stream] == only:
            await write(piece.stream, piece.data if raw else decoders[piece.stream].decode(piece.data).encode())
    for stream, decoder in decoders.items():  # a character that was cut off at the end is shown as one, too
        if rest := decoder.decode(b"", final=True):
            await write(stream, rest.encode())


async def write(stream: int, data: bytes) -> None:
    """Writes to our own stream of the same name, without blocking the connection's housekeeping.

    A reader that has gone away ends the showing, not the execution.
    """
    descriptor = {STDOUT: 1, STDERR: 2}[stream]
    if descriptor in _gone:
        return
    try:
        await asyncio.to_thread(_write_all, descriptor, data)
    except OSError:
        _gone.add(descriptor)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, one line, on standard output."""
    sys.stdout.buffer.write(exactjson.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def print_status(status: dict[str, Any], host: Host) -> None:
    """How an execution stands, in one line."""
    result = status["result"] or {}
    ending = ""
    if result.get("exitCode") is not None:
        ending = f", exit {result['exitCode']}"
    elif result.get("signal") is not None:
        ending = f", signal {result['signal']}"
    sizes = f"{status['stdout']['bytes']} bytes on stdout, {status['stderr']['bytes']} on stderr"
    click.echo(f"{status['executionId']} on {host}: {result.get('state', status['state'])}{ending}; {sizes}")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class _Interrupts:
    """While it is entered, the first SIGINT or SIGTERM cancels on the host and the second leaves."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._count = 0
        self.has_left = False

    def __enter__(self) -> "_Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _hear(self) -> None:
        self._count += 1
        if self._count == 1:
            click.echo("cronium: cancelling on the host; interrupt again to leave it running", err=True)
            self._execution.cancel()
        else:
            self.has_left = True
            self._execution.detach()
