"""Numbers, files and standard input for the words of the command line (`cronium_runner.wire.words`)."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import click

from cronium_runner.wire.words import WordError


def read(path: str) -> bytes | None:
    """A file's content, or standard input for `-`; None when there is no such file."""
    if path == "-":
        return sys.stdin.buffer.read()
    if not os.path.isfile(path):  # also for what is too long to be a file's name
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WordError(f"cannot read {path[:60]}: {error.strerror}", "input.invalid") from None


class Number(click.FloatRange):
    """A number that can be counted to: `nan` passes every comparison, and no JSON has `inf`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """For --help: click would write `x<=None` where there is no bound."""
        return "" if self.min is None and self.max is None else super()._describe_range()
