"""The hosts of a run: each is recorded before anything begins there, with the reason where nothing was started.

A host whose job was submitted has an execution, which says how it ended. The others have a result here: `unreachable`,
`refused`, `skipped`, `malformed` or `rejected`. While a run begins hosts, its process holds a lock on a file, so that
a later process can tell a host that is still to be begun from one that never will be.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cronium_runner.wire import exactjson
from cronium_runner.wire.names import is_execution_id
from cronium_runner.wire.results import EXIT_UNREACHABLE, Outcome, Result

from .errors import AuthenticationError, ControllerError, HostKeyError, StoreError
from .logs import logger
from .schedule import STOPPED
from .store import NOTHING_STARTED, Record, Store

_log = logger("cronium.runs")

_WAITING: Final = "waiting"
_INTERRUPTED: Final = "interrupted"
"""As `skipped`, but the operator ended the run, which decides its exit status."""


@dataclass(frozen=True, slots=True)
class RunHost:
    """One host of a run. `record` is its execution, once there is one; `result` says why nothing was started there.

    With neither, the host is waiting for its turn.
    """

    run_id: str
    name: str
    execution_id: str
    record: Record | None
    result: Result | None = None
    is_interrupted: bool = False

    @property
    def is_waiting(self) -> bool:
        """Whether the host may still be begun."""
        return self.record is None and self.result is None

    @classmethod
    def of(cls, record: Record) -> "RunHost":
        """An execution that is recorded without its run: an older cronium submitted it, or a program."""
        return cls(record.id, record.host.name, record.id, record)


class Runs:
    """The table of runs' hosts, in the controller's database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._locks = store.path.parent / "runs"

    def begin(self, run_id: str, hosts: Iterable[tuple[str, str]]) -> "RunOwner":
        """Records the hosts of a run (name and execution id of each) as waiting. Close what it returns.

        Under an id that was used before, a host's earlier row is replaced, and other hosts keep theirs. Raises
        StoreError.
        """
        owner = RunOwner(self, run_id, self._locks / f"{run_id}.lock")
        now = time.time()
        try:
            with self._store.database.writing():
                rows = (
                    {"run_id": run_id, "host": name, "execution_id": execution_id, "now": now}
                    for name, execution_id in hosts
                )
                self._store.database.write_each(_BEGIN, rows)
        except BaseException:
            owner.abandon()
            raise
        return owner

    def record(self, run_id: str, result: Result) -> None:
        """Records why nothing was started on a host. What can't be written is logged: the run goes on.

        Where an earlier submission under the same id may have started something, that execution is kept instead.
        """
        row = {
            "run_id": run_id,
            "host": result.host or "",
            "execution_id": result.execution_id,
            "state": result.state.value,
            "result": exactjson.encode(result.to_json()),
            "now": time.time(),
        }
        try:
            self._store.database.write(_RECORD, row)
        except StoreError as error:
            _log.warning("not_recorded", extra={"host": result.host, "reason": error.message})

    def skip_waiting(self, run_id: str, *, is_interrupted: bool = False) -> None:
        """Records that no host which is still waiting will be begun. Raises StoreError."""
        state = _INTERRUPTED if is_interrupted else Outcome.SKIPPED.value
        self._store.database.write(_SKIP, {"run_id": run_id, "state": state, "now": time.time()})

    def hosts(self, run_id: str) -> list[RunHost]:
        """Every host of a run, in the order of submission, then those on which nothing was started.

        Also the executions of a fan-out that was recorded without its hosts. Empty for an id that is not known.
        """
        rows = self._store.database.read(_HOSTS, {"run_id": run_id})
        found = [self._host(run_id, row) for row in rows]
        known = {host.execution_id for host in found}
        single = self._store.find(run_id)
        records = [single] if single is not None else self._store.fan_out(run_id)
        return [*found, *(RunHost.of(record) for record in records if record.id not in known)]

    def look_again(self, host: RunHost) -> RunHost:
        """The same host as it stands now. One that waits for a process that has ended becomes `skipped`."""
        if not self.has_owner(host.run_id):
            self.skip_waiting(host.run_id)
        key = {"run_id": host.run_id, "host": host.name, "execution_id": host.execution_id}
        rows = self._store.database.read(f"{_HOSTS_OF} AND h.host = :host AND h.execution_id = :execution_id", key)
        return self._host(host.run_id, rows[0]) if rows else host

    def has_owner(self, run_id: str) -> bool:
        """Whether a process lives that may still begin hosts of the run."""
        try:
            descriptor = os.open(self._locks / f"{run_id}.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _host(self, run_id: str, row: Any) -> RunHost:
        record = None if row["id"] is None else self._store.record_of(row)
        result = _result(row)
        if record is not None and result is not None and _was_submitted_since(record, row["noted_at"]):
            result = None
        if result is not None:
            record = None
        elif record is not None and not _was_submitted_since(record, row["noted_at"]) and not record.may_have_started:
            record = None  # of an earlier run under this id, which started nothing
        return RunHost(run_id, row["run_host"], row["execution_id"], record, result, row["run_state"] == _INTERRUPTED)


class RunOwner:
    """Holds the lock of a run: as long as it is held, waiting hosts may still be begun. Close it afterwards."""

    def __init__(self, runs: Runs, run_id: str, path: Path) -> None:
        """Raises StoreError."""
        self._runs = runs
        self._run_id = run_id
        self._path = path
        self._descriptor: int | None = _locked(path)

    def __enter__(self) -> "RunOwner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close(is_interrupted=kind is not None and not issubclass(kind, Exception))

    def close(self, *, is_interrupted: bool = False) -> None:
        """Records hosts that still wait as skipped, unless another process works on the run, and releases the lock."""
        if self._descriptor is None:
            return
        try:
            if self._is_last():
                self._runs.skip_waiting(self._run_id, is_interrupted=is_interrupted)
        except StoreError as error:
            _log.warning("not_recorded", extra={"run": self._run_id, "reason": error.message})
        self.abandon()

    def abandon(self) -> None:
        """Releases the lock and leaves the rows of the hosts as they are."""
        if self._descriptor is None:
            return
        if self._is_last():
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        os.close(self._descriptor)
        self._descriptor = None

    def _is_last(self) -> bool:
        """Whether no other process holds the lock: then we hold it alone from here on."""
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def hosts_of(store: Store, run_ids: Sequence[str]) -> list[RunHost]:
    """The hosts of all these runs, each once. Raises ControllerError when one of the ids is not known here."""
    runs = Runs(store)
    found: dict[tuple[str, str], RunHost] = {}
    for run_id in run_ids:
        hosts = runs.hosts(run_id)
        if not hosts:
            raise ControllerError(
                "execution.not_found",
                f"no execution {run_id[:80]!r} was submitted from here; its host may know it: cronium-runner status",
            )
        found.update({(host.execution_id or host.run_id, host.name): host for host in hosts})
    return list(found.values())


@contextlib.contextmanager
def on_one_host(store: Store, run_id: str, host_name: str) -> Iterator[None]:
    """Records a run on one host around its submission. A ControllerError raised in the block becomes its result."""
    if not is_execution_id(run_id):  # what is submitted under it is refused, with the reason
        yield
        return
    runs = Runs(store)
    with runs.begin(run_id, [(host_name, run_id)]):
        try:
            yield
        except ControllerError as error:
            state = outcome_of(error, may_have_started=store.may_have_started(run_id))
            if state is not Outcome.UNKNOWN:
                runs.record(run_id, result_of(error, state, run_id, host_name))
            raise


def outcome_of(error: ControllerError, *, may_have_started: bool) -> Outcome:
    """What an error amounts to on the host that it is about. `unknown` stands only where a start may have happened."""
    if error.exit_status != EXIT_UNREACHABLE:
        return Outcome.REJECTED
    if may_have_started:
        return Outcome.UNKNOWN
    is_refusal = isinstance(error, (AuthenticationError, HostKeyError))
    return Outcome.REFUSED if is_refusal else Outcome.UNREACHABLE


def result_of(error: ControllerError, state: Outcome, execution_id: str, host_name: str) -> Result:
    """An error as the result of a host."""
    return Result(execution_id, state, host=host_name, error_code=error.code, error_message=error.message)


def status_of(host: RunHost) -> dict[str, Any]:
    """How a host stands on which nothing was started, in the form in which a host tells of an execution."""
    nothing = {"bytes": 0, "truncated": False, "sha256": None}
    result = host.result
    return {
        "executionId": host.execution_id,
        "host": host.name,
        "state": _WAITING if result is None else result.state.value,
        "result": None if result is None else result.to_json(),
        "stdout": nothing,
        "stderr": nothing,
    }


def _was_submitted_since(record: Record, noted_at: float) -> bool:
    return record.submitted_at >= noted_at


def _result(row: Any) -> Result | None:
    state = row["run_state"]
    if state == _WAITING:
        return None
    if row["run_result"] is not None:
        return Result.from_json(exactjson.loads(row["run_result"]))
    why = "it was interrupted" if state == _INTERRUPTED else "the process that ran it ended first"
    sentence = f"{row['run_host']}: not begun, because {why}; run it again there"
    return Result(
        row["execution_id"], Outcome.SKIPPED, host=row["run_host"], error_code=STOPPED, error_message=sentence
    )


def _locked(path: Path) -> int:
    """A descriptor that shares the lock on the file of this name. Raises StoreError."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # Another owner may have removed the file between the two calls: then our lock would not be found.
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"the run cannot be recorded below {path.parent}: {error.strerror}") from None


_BEGIN: Final = (
    "INSERT INTO run_hosts (run_id, host, execution_id, state, noted_at) "
    f"VALUES (:run_id, :host, :execution_id, '{_WAITING}', :now) ON CONFLICT (run_id, host, execution_id) "
    f"DO UPDATE SET state = '{_WAITING}', result = NULL, noted_at = :now"
)
_RECORD: Final = (
    "UPDATE run_hosts SET state = :state, result = :result, noted_at = :now "
    "WHERE run_id = :run_id AND host = :host AND execution_id = :execution_id AND NOT EXISTS "
    f"(SELECT 1 FROM executions AS e WHERE e.id = :execution_id AND e.state NOT IN {NOTHING_STARTED})"
)
_SKIP: Final = (
    "UPDATE run_hosts SET state = :state, noted_at = :now "
    f"WHERE run_id = :run_id AND state = '{_WAITING}' AND NOT EXISTS (SELECT 1 FROM executions AS e "
    "WHERE e.id = run_hosts.execution_id AND "
    f"(e.submitted_at >= run_hosts.noted_at OR e.state NOT IN {NOTHING_STARTED}))"
)
_HOSTS_OF: Final = (
    "SELECT e.*, h.host AS run_host, h.execution_id, h.state AS run_state, h.result AS run_result, h.noted_at "
    "FROM run_hosts AS h LEFT JOIN executions AS e ON e.id = h.execution_id WHERE h.run_id = :run_id"
)
_HOSTS: Final = f"{_HOSTS_OF} ORDER BY e.submitted_at IS NULL, e.submitted_at, h.host"
