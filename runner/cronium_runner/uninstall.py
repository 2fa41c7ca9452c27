"""Removes the runner from this account of the host: its installed forms and, when asked, its records.

Only what the project made goes: installed forms in the install roots, and the state directory's files by their names.
No link is followed and nothing of another account is touched. A form that a process runs from stays, and records stay
while something runs or was not fetched, unless it is forced.
"""

import contextlib
import os
import re
import stat
import time
from typing import Any, Final

from . import bundle, housekeeping, listing, liveness, location, process, safe_path
from .errors import RunnerError, StateDamagedError, StateDirectoryError
from .install import installed_executable
from .jobdir import TEMPORARY, ExecutionDirectory, StateDirectory, default_state_directory
from .liveness import Liveness
from .state_files import open_file
from .tree import remove_tree
from .wire import exactjson
from .wire.names import is_execution_id

_FORM: Final = re.compile(r"(?!source-)[A-Za-z0-9._+-]+-[0-9a-f]{12}")
"""Its name in an install root. `source-…` holds the helpers of a runner that runs from source."""
_REMOVED: Final = f"{TEMPORARY}removed-"
"""How the folder of executions is called from the moment on in which no id can be claimed in it any more."""
_FOLDERS: Final = ("payloads", "s")
_FILES: Final = ("started", "started.new", "collected", "index", "index.new")
_TIDY_SECONDS: Final = 60.0
"""As long as the clean-up of an execution may take."""
_NAMED: Final = 5
"""Ids that a message names at most."""


def uninstall(*, wants_records: bool, is_forced: bool, is_dry_run: bool) -> dict[str, Any]:
    """Removes what may go; says what went (`removed`), what stays and why (`kept`), and what became of the records.

    Raises RunnerError `uninstall.refused`, before anything is removed, when there are records that must not go. The
    form that this process runs from goes last, so what is needed afterwards has to be imported before.
    """
    records = _remove_records(is_forced=is_forced, is_dry_run=is_dry_run) if wants_records else None
    removed: list[str] = []
    forms, kept = _look()
    users = _users(forms)
    executable = installed_executable()
    own = None if executable is None else os.path.realpath(os.path.dirname(executable))
    for form in sorted(forms, key=lambda form: (form == own, form)):
        if users is None and not is_forced:
            kept[form] = "/proc is not there, so it cannot be seen whether a process uses it"
        elif users is not None and users[form] and not is_forced:
            kept[form] = f"used by process {', '.join(map(str, users[form][:_NAMED]))}"
        else:
            try:
                if not is_dry_run:
                    _remove_form(form)
                removed.append(form)
            except (OSError, StateDirectoryError) as error:
                kept[form] = error.message if isinstance(error, StateDirectoryError) else str(error.strerror)
    if not is_dry_run:
        for root in {os.path.dirname(form) for form in removed}:
            with contextlib.suppress(OSError):  # something else is in it
                os.rmdir(root)
    return {"removed": removed, "kept": kept, "records": records, "isDryRun": is_dry_run}


def _look() -> tuple[list[str], dict[str, str]]:
    """The account's installed forms, and install roots that cannot be used, with the reason."""
    executable = installed_executable()
    roots = location.roots()
    if executable is not None:
        roots.append(os.path.dirname(os.path.dirname(executable)))
    forms: list[str] = []
    unusable: dict[str, str] = {}
    for root in dict.fromkeys(map(_real_parent, roots)):
        try:
            if not _is_own_folder(root):
                continue  # a link, a file, or another account's
            safe_path.check(root)
            with os.scandir(root) as entries:
                forms += sorted(entry.path for entry in entries if _is_form(entry.path))
        except FileNotFoundError:
            continue
        except (OSError, safe_path.UnsafePathError) as error:
            unusable[root] = str(error)
    return forms, unusable


def _real_parent(root: str) -> str:
    """The root by its real path, but for its own name: a root that is a link is none."""
    return os.path.join(os.path.realpath(os.path.dirname(root)), os.path.basename(root))


def _is_own_folder(path: str) -> bool:
    """Whether it is a directory of this account, and no link. Raises OSError."""
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _is_form(path: str) -> bool:
    """Whether a folder in an install root is an installed form of the runner, by its name and its list of contents."""
    if _FORM.fullmatch(os.path.basename(path)) is None:
        return False
    try:
        if not _is_own_folder(path):
            return False
        listing_file = open_file(os.path.join(path, bundle.CONTENTS), os.O_RDONLY)
    except (OSError, StateDamagedError):
        return False
    try:
        return os.read(listing_file, len(bundle.MAGIC) + 1) == f"{bundle.MAGIC}\n".encode()
    finally:
        os.close(listing_file)


def _users(forms: list[str]) -> dict[str, list[int]] | None:
    """The processes that run from each form, this one and those that started it excepted; None without /proc.

    By the program, which a runner that isn't dumpable shows to root alone, or by a word of the command line.
    """
    ours = _ancestors()
    users: dict[str, list[int]] = {form: [] for form in forms}
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        pids = []
    if os.getpid() not in pids:
        return None
    for pid in pids:
        if pid in ours:
            continue
        words = []
        with contextlib.suppress(OSError):
            words.append(os.readlink(f"/proc/{pid}/exe"))
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            words += map(os.fsdecode, file.read().split(b"\0"))
        for form in forms:
            if any(word.startswith(f"{form}/") for word in words):
                users[form].append(pid)
    return users


def _ancestors() -> set[int]:
    """This process and those above it: the shell of the session that started it names its form as well."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        fields = process.stat_fields(pid)
        if fields is None:
            break
        pid = int(fields[1])
    return found


def _remove_form(form: str) -> None:
    """Renamed first, so that it is there whole or not at all. Raises OSError, StateDirectoryError."""
    aside = f"{form}.{os.urandom(4).hex()}.tmp"  # a name that goes with the next deployment, should we be ended
    os.rename(form, aside)
    remove_tree(aside)


def _remove_records(*, is_forced: bool, is_dry_run: bool) -> dict[str, Any] | None:
    """Removes all executions and what belongs to them; None when there is no state directory.

    What runs is ended first when it is forced. Raises RunnerError.
    """
    path = default_state_directory()
    if not os.path.lexists(path):
        return None
    state = StateDirectory.open(path)
    running, unfetched, count = _executions(state)
    told: dict[str, Any] = {"path": path, "executions": count, "running": len(running), "unfetched": len(unfetched)}
    told["kept"] = []
    if is_dry_run:
        return told
    if (running or unfetched) and not is_forced:
        raise _refused(path, running, unfetched)
    if running:
        from . import foreground

        for execution_id in running:
            with contextlib.suppress(StateDamagedError):
                execution = state.execution(execution_id)
                foreground.cancel(execution)
                _wait_for_supervisor(execution)
    try:
        with housekeeping.only_one(state, waits=True):
            _remove_executions(state)
            _remove_rest(state)
        told["kept"] = sorted(os.listdir(path))
        if not told["kept"]:
            os.rmdir(path)
    except OSError as error:
        raise StateDirectoryError(f"{error.filename or path} cannot be removed: {error.strerror}") from None
    return told


def _wait_for_supervisor(execution: ExecutionDirectory) -> None:
    """Until the execution's supervisor has tidied up, which it does after its result."""
    until = time.monotonic() + _TIDY_SECONDS
    claim = execution.history()[0]
    while time.monotonic() < until and liveness.of_supervisor(claim, execution.state_path) is Liveness.ALIVE:
        time.sleep(0.02)


def _executions(state: StateDirectory) -> tuple[list[str], list[str], int]:
    """The ids of executions that have not ended and of those whose result was not fetched, and how many there are."""
    running, unfetched, count = [], [], 0
    for text in listing.oldest_first(state, wants_all=True, wants_running=False, is_whole=False):
        count += 1
        status = exactjson.loads(text)
        if not listing.has_ended(status):
            running.append(status["executionId"])
        elif not status["acknowledged"] and not status["collected"]:
            unfetched.append(status["executionId"])
    return running, unfetched, count


def _refused(path: str, running: list[str], unfetched: list[str]) -> RunnerError:
    said = []
    if running:
        said.append(f"{len(running)} not ended ({_some(running)})")
    if unfetched:
        said.append(f"{len(unfetched)} whose result was not fetched ({_some(unfetched)})")
    return RunnerError(
        "uninstall.refused",
        f"{path} has executions: {' and '.join(said)}; nothing was removed; cancel and fetch them (cronium cancel, "
        "cronium wait), or remove them with --force, which ends what runs",
    )


def _some(ids: list[str]) -> str:
    left = len(ids) - _NAMED
    return ", ".join(ids[:_NAMED]) + (f" and {left} more" if left > 0 else "")


def _remove_executions(state: StateDirectory) -> None:
    """Takes the folder of executions away in one step and looks again: what was claimed meanwhile must not go.

    Raises OSError, RunnerError.
    """
    with contextlib.suppress(FileNotFoundError):
        # A guardian makes the directory of a started id again; these need no such memory while they have one.
        state.started.forget(name for name in state.ids() if _has_ended(state.executions, name, state))
    aside = os.path.join(state.path, _REMOVED + os.urandom(8).hex())
    os.rename(state.executions, aside)
    claimed = [name for name in os.listdir(aside) if is_execution_id(name) and not _has_ended(aside, name, state)]
    if claimed:
        os.rename(aside, state.executions)
        raise _refused(state.path, sorted(claimed), [])
    for name in os.listdir(state.path):
        if name.startswith(_REMOVED):  # also what an earlier one has left
            remove_tree(os.path.join(state.path, name))


def _has_ended(folder: str, name: str, state: StateDirectory) -> bool:
    path = os.path.join(folder, name)
    if os.path.lexists(os.path.join(path, "result.json")):
        return True
    try:
        return ExecutionDirectory(state, name, path=path).is_tombstone()
    except (OSError, StateDamagedError):
        return True  # it cannot be read, was told of, and was given up


def _remove_rest(state: StateDirectory) -> None:
    for name in _FOLDERS:
        path = os.path.join(state.path, name)
        if os.path.lexists(path) and _is_own_folder(path):
            remove_tree(path)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(state.path, "node_modules", "cronium"))
        os.rmdir(os.path.join(state.path, "node_modules"))
    for name in _FILES:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(state.path, name))
