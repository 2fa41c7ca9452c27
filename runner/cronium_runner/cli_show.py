"""What the runner's commands print: one JSON object a line, its own words, the end of an execution's streams."""

import os
import sys
from typing import Any

from .errors import RunnerError
from .wire.results import TEXT_TAIL, Outcome, Result


def with_text(result: Result, tails: "dict[str, bytes] | None" = None) -> dict[str, Any]:
    """The result as --json prints it: with the last 64 KiB of each stream as text, null where that can't be read."""
    shown = result.to_json()
    for name in ("stdout", "stderr"):
        try:
            if tails is not None:  # another account's, whose files aren't ours to read
                tail = tails[name]
            else:
                tail = b"" if result.state is Outcome.REJECTED else _end_of(result.execution_id, name)
        except (RunnerError, OSError):  # what became of the script is told in any case
            shown[name]["text"] = None
        else:
            shown[name]["text"] = tail.decode("utf-8", "replace")
    return shown


def _end_of(execution_id: str, stream: str) -> bytes:
    from .jobdir import StateDirectory
    from .state_files import open_file

    try:
        path = StateDirectory.open().execution(execution_id).spool_path(stream)
        with open(path, "rb", opener=open_file) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TEXT_TAIL))
            return file.read(TEXT_TAIL)
    except FileNotFoundError:
        return b""


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, one line, without a character that a terminal obeys."""
    from .wire import exactjson

    print_json_text(exactjson.encode(value))


def print_json_text(text: bytes) -> None:
    """An object that is JSON already."""
    from .wire.text import clean_json

    try:
        sys.stdout.buffer.write(clean_json(text.decode()).encode() + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has gone; the exit status still says it
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def say(sentence: str) -> None:
    """One sentence on standard error."""
    from .wire.text import clean

    print(f"cronium-runner: {clean(sentence)}", file=sys.stderr, flush=True)
