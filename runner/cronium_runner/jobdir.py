"""The state directory, and the directory of one execution: what is on disk, and how it gets there durably.

    <state>/executions/<id>/state.jsonl    one line per change of state, appended; the first one is the claim
                            result.json    complete or absent (temporary name, fsync, rename, fsync)
                            stdout stderr  the spools; absent while empty
                            work/          the script's directory, removed at the end unless kept
    <state>/started                        16 bytes for each id whose script was started, in case its directory goes
    <state>/payloads/<sha256>.tar.gz       payloads by content, for the agent
    <state>/index                          a cache of what listings show (`record_index`)
    <state>/s/<8 hex>                      helper sockets

An execution is prepared under a temporary name and claimed by renaming it to its id. rename(2) refuses a target
that is a non-empty directory or a file, so exactly one claim of an id succeeds, and what is claimed is complete.
No process is started or signalled here.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterable
from typing import Any, Final

from . import liveness, process, safe_path
from .errors import ExecutionError, StateDamagedError, StateDirectoryError
from .lifecycle import State
from .started_ids import StartedIds
from .state_files import RESULT_LIMIT, STATE_LIMIT, open_file, read_file
from .wire import exactjson
from .wire.names import invalid_id_sentence, is_execution_id

TEMPORARY: Final = ".new-"
"""How names begin that are not in use yet; no execution id and no digest can."""
SOCKET_PATH_LIMIT: Final = 107
"""sun_path holds 108 bytes with its NUL (unix(7))."""

FORWARDED: Final = ".api"
"""How the names of sockets end that sshd makes for API mode; helper sockets' names are hexadecimal digits alone."""
FORWARDED_SECONDS: Final = 10.0
"""How old a forwarded socket that refuses must be to be one that was left: longer than from bind(2) to listen(2)."""


_OWN_PLACE: Final = "set CRONIUM_STATE_DIR to a directory of the account's own"

COLLECTED_EVERY_SECONDS: Final = 3600.0
"""How often a collection begins by itself: what is kept is counted in days."""
REMOVED: Final = "removed"
"""The key of a line of state.jsonl that was written after the execution's directory had been removed by somebody."""
TOMBSTONE: Final = "collected"
"""The key of a tombstone's only line that holds the result in brief."""


class AlreadyClaimedError(Exception):
    """The id was claimed before, by this or another submission. Nothing was started."""


def utc_now() -> str:
    """The wall clock as ISO 8601 in UTC with milliseconds."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def default_state_directory() -> str:
    """Where the state is unless CRONIUM_STATE_DIR says otherwise.

    The home directory comes from the password database: $HOME and XDG_* differ between a login and an SSH channel,
    and one id must not start twice because two shells disagree.
    """
    chosen = os.environ.get("CRONIUM_STATE_DIR")
    if chosen:
        return os.path.abspath(chosen)
    return os.path.join(_home()[1], ".local/state/cronium-runner")


def _home() -> tuple[str, str]:
    """Name and home directory of our account in the password database. Raises StateDirectoryError."""
    from . import password_database

    try:
        entry = password_database.by_uid(os.geteuid())
    except KeyError:
        raise StateDirectoryError(
            f"user {os.geteuid()} has no entry in the password database; set CRONIUM_STATE_DIR to a directory"
        ) from None
    if not entry.pw_dir.startswith("/"):
        raise StateDirectoryError(
            f"{entry.pw_name} has no home directory in the password database; give it one, or {_OWN_PLACE}"
        )
    return entry.pw_name, entry.pw_dir


def _check_home() -> None:
    """The home directory, which the state directory is to be made in, is there and ours to write.

    An account without one is usual for services; to root, making it would look like success. Raises
    StateDirectoryError.
    """
    name, home = _home()
    if not os.path.isdir(home):
        raise StateDirectoryError(
            f"the home directory {home} of {name} does not exist, and executions are kept there; make it (as root: "
            f"mkhomedir_helper {name}), or {_OWN_PLACE}"
        )
    if not os.path.lexists(os.path.join(home, ".local")) and not os.access(home, os.W_OK | os.X_OK):
        raise StateDirectoryError(
            f"the home directory {home} cannot be written by {name}, and executions are kept there; give it to "
            f"{name}, or {_OWN_PLACE}"
        )


def check_private_directory(path: str) -> None:
    """Raises StateDirectoryError unless `path` is a real directory of ours that nobody else can enter."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise StateDirectoryError(
            f"{path} is not a directory (a link or a file); choose another with CRONIUM_STATE_DIR"
        )
    if found.st_uid != os.geteuid():
        raise StateDirectoryError(
            f"{path} belongs to user {found.st_uid}, not to us ({os.geteuid()}); choose another with CRONIUM_STATE_DIR"
        )
    if found.st_mode & 0o077:
        raise StateDirectoryError(f"{path} is open to other users; make it yours alone with: chmod 700 {path}")


def _ensure_private_directory(path: str) -> None:
    if not safe_path.make_one(path):
        check_private_directory(path)


class StateDirectory:
    """One account's executions on this host."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.executions = os.path.join(path, "executions")
        self.payloads = os.path.join(path, "payloads")
        self.started = StartedIds(os.path.join(path, "started"))
        self.collected = os.path.join(path, "collected")
        """Its time is that of the last collection; its lock is the one's that is running."""
        self.index = os.path.join(path, "index")
        """What listings show of ended executions; a cache (`record_index`)."""

    def __repr__(self) -> str:
        return f"<StateDirectory {self.path}>"

    @classmethod
    def open(cls, path: str | None = None) -> "StateDirectory":
        """Makes or checks the state directory. Raises StateDirectoryError with the path and the reason."""
        is_default = not (path or os.environ.get("CRONIUM_STATE_DIR"))
        path = path or default_state_directory()
        state = cls(path)
        try:
            if not os.path.lexists(path):
                if is_default:
                    _check_home()
                safe_path.make(os.path.dirname(path))
            _ensure_private_directory(path)
            safe_path.check(path)
            _ensure_private_directory(state.executions)
            if not os.access(state.executions, os.W_OK | os.X_OK):
                raise StateDirectoryError(f"{state.executions} is not writable")
        except safe_path.UnsafePathError as error:
            advice = f"correct it with: {error.remedy}; or" if error.remedy else "you may"
            raise StateDirectoryError(
                f"cannot use the state directory {path}: {error}; {advice} choose another with CRONIUM_STATE_DIR"
            ) from None
        except OSError as error:
            raise StateDirectoryError(
                f"cannot use the state directory {path}: {error.strerror} ({error.filename}); "
                "mend it, or choose another with CRONIUM_STATE_DIR"
            ) from None
        return state

    def execution(self, execution_id: str) -> "ExecutionDirectory":
        """The directory of an execution of this id.

        Raises ExecutionError when there is none, StateDamagedError when there was one.
        """
        if not is_execution_id(execution_id):
            raise ExecutionError("execution.id_invalid", invalid_id_sentence(execution_id))
        execution = ExecutionDirectory(self, execution_id)
        if not is_directory(execution.path):
            if os.path.lexists(execution.path):
                raise StateDamagedError(execution.path, "is not a directory")
            if self.started.has(execution_id):
                raise StateDamagedError(
                    execution.path,
                    "was removed",
                    f"'{execution_id}' had been started, so it is not started again; what became of it is not known",
                )
            raise ExecutionError(
                "execution.not_found",
                f"no execution '{execution_id}' in {self.path}; `cronium-runner list` shows those that there are",
            )
        return execution

    def has(self, execution_id: str) -> bool:
        """Whether there is something of this id, an execution or the tombstone of one."""
        return os.path.lexists(f"{self.executions}/{execution_id}")

    def has_result(self, execution_id: str) -> bool:
        """Whether there is a file for its result, whatever is in it."""
        return os.path.lexists(f"{self.executions}/{execution_id}/result.json")

    def is_claimed(self, execution_id: str) -> bool:
        """Whether the id is taken, by an execution, by the tombstone of one, or by one whose directory was removed."""
        return self.has(execution_id) or self.started.has(execution_id)

    def forget_started(self) -> None:
        """Has `started` forget the ids whose records are complete, once it is large.

        Raises OSError, StateDamagedError.
        """
        if self.started.is_large():
            self.started.forget(name for name in self.ids() if ExecutionDirectory(self, name).is_complete())

    def restore(self, execution_id: str, lines: Iterable[bytes]) -> "ExecutionDirectory":
        """Makes the directory of an execution again that was removed, with these lines as its history.

        Raises OSError, StateDirectoryError.
        """
        StateDirectory.open(self.path)  # it may have gone as a whole
        execution = ExecutionDirectory(self, execution_id)
        with contextlib.suppress(FileExistsError):
            os.mkdir(execution.path, 0o700)
        if not is_directory(execution.path):
            raise StateDamagedError(execution.path, "is not a directory")
        write_durably(execution.state_path, b"".join(lines))
        _sync_directory(execution.path)
        _sync_directory(self.executions)
        return execution

    def restore_for_dead(self, execution_id: str, pid: int, lock: int | None) -> bool:
        """For the guardian of supervisor `pid`, which has ended: makes the directory of its execution again where it
        was removed, so that the loss can be written down. Whether it was. Raises OSError, StateDirectoryError.

        `lock` is the guardian's open state.jsonl: while it is open, a removed file can be read. The claim in it says
        how to find what the script left.
        """
        path = os.path.join(self.executions, execution_id)
        if os.path.lexists(path) or not self.started.has(execution_id):
            return False
        who = {**process.identity(pid), "start": None}
        lines = _lines_in(lock) or [_line(State.CLAIMED, {"supervisor": who})]
        self.restore(execution_id, [*lines, _line(State.RUNNING, {REMOVED: True})])
        return True

    def ids(self) -> list[str]:
        """The ids of all executions that have a directory, oldest first."""
        found = []
        with os.scandir(self.executions) as entries:
            for entry in entries:
                if is_execution_id(entry.name) and entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # given back just now
                        found.append((entry.stat(follow_symlinks=False).st_ctime, entry.name))
        return [name for _, name in sorted(found)]

    def ids_after(self, after: str) -> list[str]:
        """The ids behind this one in the order of their letters, which no event changes."""
        with os.scandir(self.executions) as entries:
            names = [entry.name for entry in entries if entry.name > after and entry.is_dir(follow_symlinks=False)]
        return sorted(name for name in names if is_execution_id(name))

    def is_collection_due(self) -> bool:
        """Whether the last collection began an hour ago or more. A state directory is never due at first."""
        try:
            return not 0 <= time.time() - os.lstat(self.collected).st_mtime < COLLECTED_EVERY_SECONDS
        except FileNotFoundError:
            with contextlib.suppress(OSError, StateDamagedError):
                os.close(open_file(self.collected, os.O_WRONLY | os.O_CREAT))
        except OSError:
            pass
        return False

    def new_temporary(self, folder: str) -> str:
        """A fresh name in `folder` that no execution id or digest can have."""
        return f"{folder}/{TEMPORARY}{os.urandom(8).hex()}"

    def sweep(self) -> None:
        """Removes what processes that died in the middle have left half-prepared, once it is certainly nobody's."""
        for folder in (self.executions, self.payloads):
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(TEMPORARY) and entry.stat(follow_symlinks=False).st_mtime < _an_hour_ago():
                        with contextlib.suppress(OSError):
                            remove_tree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        with contextlib.suppress(OSError, StateDirectoryError):
            for folder in {os.path.dirname(self.socket_path()), self.forwarded_folder()}:
                self._sweep_sockets(folder)

    def _sweep_sockets(self, folder: str) -> None:
        """Helper sockets of supervisors that were killed before their claim named them, and forwarded ones: sshd leaves
        those behind. A long job's still answers; on another machine it refuses all the same, so that nothing is removed
        where the folder may be one of several machines.
        """
        import socket

        is_shared: bool | None = None
        with os.scandir(folder) as entries:
            for entry in entries:
                youngest = time.time() - FORWARDED_SECONDS if entry.name.endswith(FORWARDED) else _an_hour_ago()
                if entry.stat(follow_symlinks=False).st_mtime < youngest:
                    is_shared = liveness.is_shared(folder) if is_shared is None else is_shared
                    if is_shared:
                        return
                    with contextlib.suppress(BlockingIOError), socket.socket(socket.AF_UNIX) as asking:
                        asking.setblocking(False)
                        try:
                            asking.connect(entry.path)
                        except ConnectionRefusedError:
                            os.unlink(entry.path)

    def payload_path(self, sha256: str) -> str:
        """Where the payload of this digest is, or would be."""
        return f"{self.payloads}/{sha256}.tar.gz"

    def ensure_payloads(self) -> None:
        """Makes the payload cache's folder when it is not there."""
        _ensure_private_directory(self.payloads)

    def socket_path(self) -> str:
        """A fresh path for a helper socket, at most 107 bytes, in a folder of ours that is closed to others."""
        name = os.urandom(4).hex()
        return f"{self._socket_folder(name)}/{name}"

    def forwarded_folder(self) -> str:
        """Where sshd may make the sockets of API mode (8 hexadecimal digits and `.api`); ours and closed to others."""
        return self._socket_folder("0" * 8 + FORWARDED)

    def _socket_folder(self, name: str) -> str:
        folder = f"{self.path}/s"
        if len(os.fsencode(folder)) + 1 + len(name) > SOCKET_PATH_LIMIT:
            # A deep state directory (tests, long home paths). The folder's owner and mode are checked, so nobody
            # who made it first can listen in.
            folder = f"/tmp/cronium-{os.geteuid()}"  # noqa: S108
        _ensure_private_directory(folder)
        return folder

    def stage(self) -> "Stage":
        """A fresh directory in which an execution is prepared before its id is claimed."""
        path = self.new_temporary(self.executions)
        os.mkdir(path, 0o700)
        return Stage(self, path)


class Stage:
    """An execution that is being prepared: everything in place except its name."""

    def __init__(self, state: StateDirectory, path: str) -> None:
        self._state = state
        self.path = path
        self.work = f"{path}/work"

    def claim(self, execution_id: str, record: dict[str, Any]) -> "ExecutionDirectory":
        """Takes the id, durably, with `record` as the first line of its state.

        Raises AlreadyClaimedError when the id is taken. When this returns, no later submission of the id can start it,
        also after a power loss.
        """
        claimed = ExecutionDirectory(self._state, execution_id, path=self.path)
        try:
            claimed.begin(record)
            os.rename(self.path, goal := f"{self._state.executions}/{execution_id}")
        except OSError as error:
            claimed.let_go()
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyClaimedError(execution_id) from None
            raise
        claimed.move_to(goal)
        if self._state.started.has(execution_id):
            claimed.release()  # it was started, and its directory removed, while this one was prepared
            raise AlreadyClaimedError(execution_id)
        try:
            _sync_directory(self._state.executions)
        except OSError:
            claimed.release()  # a claim that may be gone after a power loss is none
            raise
        return claimed

    def discard(self) -> None:
        """Removes what was prepared. What can't be removed now, `sweep` takes later."""
        with contextlib.suppress(StateDirectoryError):
            remove_tree(self.path)


class ExecutionDirectory:
    """One execution on disk. The supervisor is its only writer while it lives."""

    def __init__(self, state: StateDirectory, execution_id: str, *, path: str | None = None) -> None:
        self.state_directory = state
        self.id = execution_id
        self._held: int | None = None
        self._lines: list[bytes] = []
        self.move_to(path or f"{state.executions}/{execution_id}")

    def __repr__(self) -> str:
        return f"<ExecutionDirectory {self.id}>"

    def move_to(self, path: str) -> None:
        """The directory has another name now."""
        self.path = path
        self.work = f"{path}/work"
        self.state_path = f"{path}/state.jsonl"

    def begin(self, record: dict[str, Any]) -> None:
        """Writes the claim, the history's first line. From here on this process holds the supervisor's lock."""
        self._held = open_file(self.state_path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        locked = {liveness.LOCK: liveness.LOCKED_FILE} if liveness.hold(self._held) else {}
        self._append(self._held, _line(State.CLAIMED, {**record, **locked}))

    def let_go(self) -> None:
        """Gives the supervisor's lock up."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def append_state(self, state: State, record: dict[str, Any]) -> None:
        """Adds one line to the history of states. One write(2) with O_APPEND: a reader sees all of it or nothing."""
        if self._held is not None:  # also when the record was removed: `restore` needs all of its lines
            self._append(self._held, _line(state, record))
            return
        opened = open_file(self.state_path, os.O_WRONLY | os.O_APPEND)
        try:
            self._append(opened, _line(state, record))
        finally:
            os.close(opened)

    def _append(self, opened: int, line: bytes) -> None:
        written = os.write(opened, line)
        if written != len(line):  # the disk is full: half a line would make what follows unreadable
            os.ftruncate(opened, os.fstat(opened).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._lines.append(line)

    def is_removed(self) -> bool:
        """For the supervisor: whether its history is no longer where it was, so that the record was removed."""
        if self._held is None:
            return False
        try:
            return not os.path.samestat(os.lstat(self.state_path), os.fstat(self._held))
        except FileNotFoundError:
            return True

    def restore(self, state: State) -> None:
        """For the supervisor: makes a record again that was removed, and holds its lock.

        Raises OSError, StateDirectoryError.
        """
        lines = [*self._lines, _line(state, {REMOVED: True})]
        self.state_directory.restore(self.id, lines)
        self.let_go()
        self._held = liveness.hold_file(self.state_path, os.O_RDWR | os.O_APPEND)

    def history(self) -> list[dict[str, Any]]:
        """The lines of state.jsonl, oldest first. A line cut short by a crash is left out. Raises StateDamagedError."""
        try:
            lines = read_file(self.state_path, STATE_LIMIT).split(b"\n")
        except FileNotFoundError:
            return []
        found = []
        for line in lines[:-1]:
            try:
                found.append(exactjson.loads(line))
            except ValueError:
                continue
        return [record for record in found if isinstance(record, dict)]

    def spool_path(self, name: str) -> str:
        """Where the stream `stdout` or `stderr` is kept."""
        return f"{self.path}/{name}"

    def write_result(self, result: dict[str, Any]) -> None:
        """Makes the result durable: complete under its name, or not there at all. Raises OSError when it can't."""
        write_durably(f"{self.path}/result.json", exactjson.encode(result) + b"\n")
        _sync_directory(self.path)

    def read_result(self) -> dict[str, Any] | None:
        """The recorded result, or None while there is none. Raises StateDamagedError for one that cannot be read."""
        path = f"{self.path}/result.json"
        try:
            value = exactjson.loads(read_file(path, RESULT_LIMIT))
        except FileNotFoundError:
            return self._tombstone_result()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise StateDamagedError(path, "is damaged")
        return value

    def is_complete(self) -> bool:
        """Whether there is a result, or what is left of one. A record that cannot be read is not complete."""
        try:
            return os.path.lexists(os.path.join(self.path, "result.json")) or self.is_tombstone()
        except StateDamagedError:
            return False

    def is_tombstone(self) -> bool:
        """Whether the execution was collected: all that is left is that it was, and how it ended."""
        return self._tombstone_result() is not None

    def bury(self) -> None:
        """Leaves of an execution that has ended one small file: the claim's fingerprint, and the result in brief.

        The directory stays, so that the id is claimed at every instant, on any file system. Died in the middle, it is
        completed by the next collection.
        """
        result = self.read_result()
        history = self.history()
        if result is None or not history:
            raise StateDirectoryError(f"'{self.id}' has no result, so it is not collected")
        kept = {key: history[0].get(key) for key in ("fingerprint", "jobId", "payload")}
        brief = {key: value for key, value in result.items() if key not in ("output", "variables", "condition")}
        brief["error"] = _collected(self.id, result.get("error"))
        line = {
            "state": State.FINISHED.value,
            "at": history[0].get("at"),
            **kept,
            TOMBSTONE: brief,
        }
        if any("acknowledged" in record for record in history):
            line["acknowledged"] = True
        write_durably(self.state_path, exactjson.encode(line) + b"\n")
        _sync_directory(self.path)
        self.remove_all_but_the_tombstone()

    def holds_more_than_its_tombstone(self) -> bool:
        """Whether a collection died before it had removed everything."""
        return len(os.listdir(self.path)) > 1

    def remove_all_but_the_tombstone(self) -> None:
        """Removes what a collected execution has still on disk."""
        # The result first, and for good: it must not vouch for output that is gone already, should this be interrupted.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, "result.json"))
            _sync_directory(self.path)
        with os.scandir(self.path) as entries:
            left = [entry for entry in entries if entry.name != "state.jsonl"]
        for entry in left:
            remove_tree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)

    def _tombstone_result(self) -> dict[str, Any] | None:
        history = self.history()
        brief = history[0].get(TOMBSTONE) if history else None
        return brief if isinstance(brief, dict) else None

    def release(self) -> None:
        """Gives the id back: for a rejection after the claim but before the script ran."""
        gone = self.state_directory.new_temporary(self.state_directory.executions)
        os.rename(self.path, gone)
        self.let_go()
        with contextlib.suppress(StateDirectoryError):  # the id is free; `sweep` takes what is left
            remove_tree(gone)

    def remove_work(self) -> None:
        """Removes the script's work directory with whatever it left there."""
        remove_tree(self.work)


def is_directory(path: str) -> bool:
    """Whether there is a directory of that name, not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def remove_tree(path: str) -> None:
    """Removes a directory tree that a script may have filled with anything."""
    from .payload import remove_tree as remove

    remove(path)


def write_durably(path: str, content: bytes) -> None:
    """Writes a file so that after a crash it is complete or absent. The directory's own fsync is the caller's."""
    # A name of its own: two followers that find the same execution lost both write its result.
    temporary = f"{path}.{os.urandom(4).hex()}.new"
    opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(opened, view) :]
        os.fsync(opened)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(opened)
    os.rename(temporary, path)


def _collected(execution_id: str, error: Any) -> dict[str, str]:
    """What a result in brief says in place of the error that it had."""
    before = f"; it had ended with {error.get('code')}: {error.get('message')}" if isinstance(error, dict) else ""
    return {
        "code": "execution.collected",
        "message": f"the record of '{execution_id}' was collected on {utc_now()}: its output and values are gone, "
        f"and its id is not started again; choose a new id to run it again{before}",
    }


def _line(state: State, record: dict[str, Any]) -> bytes:
    """One line of state.jsonl."""
    return exactjson.encode({"state": state.value, "at": utc_now(), **record}) + b"\n"


def _lines_in(opened: int | None) -> list[bytes]:
    """The lines of an open state.jsonl; none unless it begins with a claim."""
    if opened is None:
        return []
    lines = os.pread(opened, STATE_LIMIT // 2, 0).splitlines(keepends=True)
    lines = [line for line in lines if line.endswith(b"\n")]
    try:
        claim = exactjson.loads(lines[0]) if lines else None
    except ValueError:
        return []
    return lines if isinstance(claim, dict) and isinstance(claim.get("supervisor"), dict) else []


def _an_hour_ago() -> float:
    # Preparing may take five minutes, receiving a large payload over a slow line longer.
    return time.time() - 3600


def _sync_directory(path: str) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
