"""`cronium-runner`, stopping itself where one of its processes begins, so that strace is put on that one and no other.

    python -m faults.parked_runner ROLE FILE WORDS…

ROLE: `guardian` (the process itself: `run`, `status` or `agent`), `supervisor`, `undertaker` or `writer` (of the index,
which then takes any record): the first such process writes its pid to FILE and stops; who has attached strace sends
SIGCONT. `nobody` stops nowhere. What is imported late is imported before, so that what strace counts is the path and
not the loading of modules.
"""

# The point is to load all of it now, whatever of it is used.
import _ctypes
import base64
import os
import pathlib
import shlex
import signal
import sys

from cronium_runner import __main__ as entry
from cronium_runner import (
    agent,
    arguments,
    bundle,
    cli,
    follow,
    foreground,
    guardian,
    indexing,
    install,
    listing,
    manifest,
    masking,
    payload,
    prepare,
    process,
    record_index,
    report,
    supervisor,
    tree,
    undertaker,
)
from cronium_runner.wire import exactjson, masks, words

LOADED = (
    _ctypes, agent, arguments, base64, bundle, cli, exactjson, follow, foreground, guardian, indexing, install, masking,
    masks, pathlib, payload, prepare, report, shlex, supervisor, tree, undertaker, words,
)  # fmt: skip


def park(file: str) -> None:
    """Says who we are and stops; only the first who comes here does."""
    try:
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    os.write(opened, b"%d\n" % os.getpid())
    os.close(opened)
    os.kill(os.getpid(), signal.SIGSTOP)


def main(role: str, file: str, command: list[str]) -> int:
    """Runs the command."""
    manifest.parse_manifest(b"version: v1\nentrypoint: warm\n", members=("warm",))  # loads the YAML library
    begins = {
        ("cronium_runner.guardian", "_supervise"): "supervisor",
        ("cronium_runner.undertaker", "start"): "undertaker",
        ("cronium_runner.housekeeping", "start"): "writer",
    }
    detach = process.detach

    def parking_detach(kept: int) -> None:
        # All kinds of forked process detach first, and nothing else does.
        caller = sys._getframe(1)
        if begins[caller.f_globals["__name__"], caller.f_code.co_name] == role:
            park(file)
        detach(kept)

    process.detach = parking_detach
    if role == "writer":
        vars(listing)["WORTHWHILE"] = 1
        vars(record_index)["QUIET_NS"] = -(10**18)
    sys.argv = ["cronium-runner", *command]
    if role == "guardian":
        park(file)
    return entry.main()


if __name__ == "__main__":
    entry.leave(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
