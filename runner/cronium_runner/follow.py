"""Reading an execution from outside its supervisor: its streams at one's own pace, its state, its result.

Everything is read from the directory. A watch connection to the supervisor says only "look again" and, by its end,
"I am gone"; so a follower in the agent, on the command line and after a lost connection are the same thing.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from . import liveness, process, undertaker
from .errors import ExecutionError, InputError, OutcomeUnknownError, RunnerError, StateDamagedError
from .jobdir import TOMBSTONE, ExecutionDirectory
from .lifecycle import State
from .liveness import Liveness
from .state_files import open_file
from .wire import exactjson
from .wire.access import API, Access, mode_of
from .wire.names import STREAM_NAMES
from .wire.results import Outcome

READ_PIECE: Final = 256 * 1024

CANCEL: Final = b"c"
"""What a watcher sends to have the execution ended."""
ACCESS: Final = b"a"
"""What a watcher sends, with a length (32 bits) and JSON behind it, to give an execution in API mode another access."""
MAX_MESSAGE: Final = 64 * 1024
"""Bytes of an access: twice what an endpoint and a token can have."""


def access_message(access: Access) -> bytes:
    """What to send for another endpoint and token. Only in API mode: an older supervisor would take it for a cancel."""
    body = exactjson.encode(access.to_json())
    return ACCESS + len(body).to_bytes(4) + body


def take_messages(received: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Takes the complete messages, kind and body, out of what a watcher has sent. What nobody knows is skipped."""
    while received:
        kind, size = bytes(received[:1]), 1
        if kind == ACCESS:
            length = int.from_bytes(received[1:5])
            size = 5 + (length if length <= MAX_MESSAGE else 0)
            if len(received) < size:
                return
        body = bytes(received[5:size])
        del received[:size]
        yield kind, body


class Follower:
    """Reads both spools from given offsets on."""

    def __init__(self, execution: ExecutionDirectory, offsets: tuple[int, int] = (0, 0)) -> None:
        self.execution = execution
        self.offsets = dict(zip(STREAM_NAMES, offsets, strict=True))
        self._files: dict[int, int] = {}

    def read(self, stream: int, limit: int = READ_PIECE) -> bytes:
        """The next bytes of a stream, at most `limit`; empty when there are none now."""
        file = self._files.get(stream)
        if file is None:
            try:
                file = open_file(self.execution.spool_path(STREAM_NAMES[stream]), os.O_RDONLY)
            except FileNotFoundError:
                return b""
            self._files[stream] = file
        piece = os.pread(file, limit, self.offsets[stream])
        self.offsets[stream] += len(piece)
        return piece

    def close(self) -> None:
        """Closes the spools. The follower must not be used afterwards."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


BUSY_SECONDS: Final = 0.05
"""Between two tries to reach a supervisor whose socket has no room for another connection."""


def open_watch(execution: ExecutionDirectory) -> socket.socket | None:
    """A watch connection to the execution's supervisor, or None when none is listening (any more).

    Raises BlockingIOError when it is there but takes no connection now, busy with its helpers: ask again.
    """
    path = _claim_record(execution).get("socket")
    if not isinstance(path, str):
        return None
    watch = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        watch.setblocking(False)  # a stopped supervisor with a full backlog must not stop us as well
        watch.connect(path)
        watch.setblocking(True)
        name = b"@watch"
        watch.sendall(b"CRH1" + (1).to_bytes(4) + len(name).to_bytes(4) + name)
    except BlockingIOError:
        watch.close()
        raise
    except OSError:
        watch.close()
        return None
    return watch


def wait_watch(execution: ExecutionDirectory, meanwhile: Callable[[], object] = lambda: None) -> socket.socket | None:
    """Like `open_watch`, but waits for a supervisor that is busy, and calls `meanwhile` each time round."""
    while True:
        try:
            return open_watch(execution)
        except BlockingIOError:
            meanwhile()
            time.sleep(BUSY_SECONDS)


def final_result(execution: ExecutionDirectory, *, is_guardian: bool = False) -> dict[str, Any] | None:
    """The result of an execution that has ended; None while it hasn't.

    Raises StateDirectoryError for a record that can't be read or written, OutcomeUnknownError when it can't be told
    from here whether the supervisor lives: then nothing is touched.

    A dead supervisor without a result is `lost`. What it left is ended first, by an undertaker that is started here;
    until that is done there is no result. `is_guardian`: the supervisor was a child of this process.
    """
    result = execution.read_result()
    if result is None and (seen := _liveness(execution)) is not Liveness.ALIVE:
        # Looked at again after the supervisor was seen dead: it may have finished in between.
        result = execution.read_result()
        if result is None and seen is Liveness.UNKNOWN:
            raise OutcomeUnknownError(
                "execution.elsewhere",
                f"whether '{execution.id}' still runs cannot be told from here: it was started on another machine, "
                "or in another container, that uses this state directory; ask there, or, when that no longer exists: "
                f"cronium-runner cancel --gone {execution.id}",
            )
        if result is None:
            undertaker.start(execution, guardian=os.getpid() if is_guardian else None)
    return result


def declare_gone(execution: ExecutionDirectory) -> bool:
    """Records an execution as `lost` on an operator's word that its machine or container no longer exists.

    False when it has ended already. Raises InputError while its supervisor is known to live, StateDirectoryError.
    """
    if execution.read_result() is not None:
        return False
    if is_alive(execution):
        raise InputError(
            f"'{execution.id}' is running, so it is not gone; cancel it where it was started, without --gone",
            "usage.invalid",
        )
    while execution.read_result() is None:
        undertaker.start(execution, guardian=None, is_declared=True)
        time.sleep(undertaker.SWEEP_SECONDS)
    return True


def is_alive(execution: ExecutionDirectory) -> bool:
    """Whether the execution's supervisor lives for certain. Raises StateDamagedError."""
    return _liveness(execution) is Liveness.ALIVE


def check_reachable(execution: ExecutionDirectory) -> None:
    """Raises ExecutionError when the supervisor lives on another machine, or where its socket is not seen from here."""
    claim = _claim_record(execution)
    who = claim.get("supervisor")
    is_elsewhere = isinstance(who, dict) and "namespace" in who and not process.is_of_here(who)
    if is_elsewhere and liveness.of_supervisor(claim, execution.state_path) is Liveness.ALIVE:
        raise ExecutionError(
            "execution.elsewhere",
            f"'{execution.id}' runs where it cannot be reached from here, on another machine or in another container; "
            "cancel it there",
        )


def _liveness(execution: ExecutionDirectory) -> Liveness:
    claim = _claim_record(execution)
    if not claim:
        what = "is damaged" if os.path.lexists(execution.state_path) else "was removed"
        raise StateDamagedError(execution.state_path, what)
    return liveness.of_supervisor(claim, execution.state_path)


def wait_settled(execution: ExecutionDirectory, *, is_guardian: bool = False) -> dict[str, Any] | None:
    """Like `final_result`, but when the supervisor is dead it waits until what it left is ended: 5 s, seldom more."""
    while (result := final_result(execution, is_guardian=is_guardian)) is None and not is_alive(execution):
        time.sleep(undertaker.SWEEP_SECONDS)
    return result


def status(execution: ExecutionDirectory) -> dict[str, Any]:
    """What is known of an execution, as one object: state, times, offsets, and the result once there is one."""
    damage: RunnerError | None = None
    result: dict[str, Any] | None = None
    history: list[dict[str, Any]] = []
    try:
        history = execution.history()
        result = final_result(execution)
        history = execution.history()
    except RunnerError as error:  # one bad record must not hide the others
        damage = error
    return described(execution, history, result, damage)


def described(
    execution: ExecutionDirectory,
    history: list[dict[str, Any]],
    result: dict[str, Any] | None,
    damage: RunnerError | None = None,
) -> dict[str, Any]:
    """The status of an execution whose history and result were read, or could not be. Starts nothing."""
    claim = history[0] if history else {}
    if damage is not None:
        state = Outcome.UNKNOWN.value
    else:
        state = State.FINISHED.value if result else str(history[-1].get("state") if history else State.CLAIMED.value)
    sizes = {}
    for name in STREAM_NAMES.values():
        try:
            sizes[name] = os.lstat(execution.spool_path(name)).st_size
        except OSError:
            sizes[name] = 0
    running = next((record for record in history if "heldBy" in record), {})
    script: dict[str, Any] = next((record["script"] for record in history if "script" in record), {})
    return {
        "executionId": execution.id,
        "jobId": claim.get("jobId"),
        "state": state,
        "pid": script.get("pid"),
        "claimedAt": claim.get("at"),
        "acknowledged": any("acknowledged" in record for record in history),
        "collected": isinstance(claim.get(TOMBSTONE), dict),
        "stdout": {"bytes": sizes["stdout"]},
        "stderr": {"bytes": sizes["stderr"]},
        "mode": mode_of(result or claim),
        "undelivered": _undelivered(execution, claim) if result is None else result.get("undelivered", 0),
        "heldBy": running.get("heldBy"),
        "limits": running.get("limits", {}),
        "result": result,
        "error": None if damage is None else {"code": damage.code, "message": damage.message},
    }


def remaining(execution: ExecutionDirectory) -> int | None:
    """Seconds until the script's timeout, by this host's clock; None where its claim does not tell."""
    try:
        until = _claim_record(execution).get("until")
    except StateDamagedError:
        return None
    return max(0, until - int(time.time())) if isinstance(until, int) and not isinstance(until, bool) else None


def _undelivered(execution: ExecutionDirectory, claim: dict[str, Any]) -> int | None:
    """How many writes of an execution that has no result wait for the platform; None when that can't be read."""
    if mode_of(claim) != API:
        return 0
    from . import journal

    return journal.undelivered(execution)


def is_in_api_mode(execution: ExecutionDirectory) -> bool:
    """Whether the execution reads and writes the platform's data."""
    return mode_of(_claim_record(execution)) == API


def settled_status(execution: ExecutionDirectory) -> dict[str, Any]:
    """Like `status`, once it is known what became of an execution whose supervisor is dead."""
    with contextlib.suppress(RunnerError):  # `status` tells of it
        wait_settled(execution)
    return status(execution)


def acknowledge(execution: ExecutionDirectory) -> None:
    """Writes down that the submitter has the result; retention counts from here."""
    if execution.is_tombstone():
        return
    if execution.read_result() is None:
        raise ExecutionError(
            "execution.not_found", f"'{execution.id}' has not finished, so there is nothing to acknowledge"
        )
    if not any("acknowledged" in record for record in execution.history()):
        execution.append_state(State.FINISHED, {"acknowledged": True})


def check_same_submission(execution: ExecutionDirectory, fingerprint: str) -> None:
    """Raises ExecutionError (`execution.id_conflict`) when the id was claimed for another payload or input."""
    claimed = _claim_record(execution).get("fingerprint")
    if claimed is not None and claimed != fingerprint:
        raise ExecutionError(
            "execution.id_conflict",
            f"execution id '{execution.id}' was already used with another payload or input; choose a new id",
        )


def _claim_record(execution: ExecutionDirectory) -> dict[str, Any]:
    history = execution.history()
    return history[0] if history else {}
