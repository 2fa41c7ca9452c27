"""The table of runs' hosts: what is recorded of each, which of two words counts, and who still begins hosts."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_controller.errors import (
    AuthenticationError,
    ChannelLostError,
    ControllerError,
    HostKeyChangedError,
    UnreachableError,
)
from cronium_controller.hosts import Host
from cronium_controller.runs import Runs, hosts_of, on_one_host, outcome_of, status_of
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome, Result

WEB01 = Host("web01", "192.0.2.1", 22, "deploy", None)
PAYLOAD = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state" / "controller.db")
    yield made
    made.close()


def states(store: Store, run_id: str = "run") -> dict[str, str]:
    """How each host of the run stands: `waiting`, its execution's state, or that of its result."""
    found = {}
    for host in Runs(store).hosts(run_id):
        recorded = host.record.state if host.record is not None else None
        found[host.name] = recorded or ("waiting" if host.result is None else host.result.state.value)
    return found


def test_hosts_are_recorded_before_anything_begins(store: Store) -> None:
    runs = Runs(store)
    with runs.begin("run", [("web01", "run.1"), ("web02", "run.2")]):
        assert states(store) == {"web01": "waiting", "web02": "waiting"}
        assert runs.has_owner("run")
        assert store.record("run.1", WEB01, PAYLOAD, "x.sh", 2e9)
        runs.record("run", Result("run.2", Outcome.UNREACHABLE, host="web02", error_code="host.unreachable"))
        assert states(store) == {"web01": "submitted", "web02": "unreachable"}
    assert not runs.has_owner("run")
    assert states(store) == {"web01": "submitted", "web02": "unreachable"}


def test_what_is_waiting_at_the_end_is_skipped(store: Store) -> None:
    with Runs(store).begin("run", [("web01", "run.1"), ("web02", "run.2")]):
        assert store.record("run.1", WEB01, PAYLOAD, "x.sh", 2e9)
    assert states(store) == {"web01": "submitted", "web02": "skipped"}
    (skipped,) = [host for host in hosts_of(store, ["run"]) if host.result is not None]
    assert skipped.result is not None
    assert (skipped.result.error_code, skipped.is_interrupted) == ("fanout.stopped", False)
    assert status_of(skipped)["state"] == "skipped"


def test_an_interrupt_is_told_apart(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), Runs(store).begin("run", [("web01", "run.1")]):
        raise KeyboardInterrupt
    (host,) = Runs(store).hosts("run")
    assert (host.is_interrupted, states(store)) == (True, {"web01": "skipped"})


def test_a_new_run_under_an_old_id_replaces_its_hosts(store: Store) -> None:
    runs = Runs(store)
    with runs.begin("run", [("web01", "run.1"), ("web02", "run.2")]):
        runs.record("run", Result("run.1", Outcome.REFUSED, host="web01", error_code="host.auth_failed"))
    with runs.begin("run", [("web01", "run.1")]):
        assert states(store) == {"web01": "waiting", "web02": "skipped"}, "the other host keeps its row"
        store.record("run.1", WEB01, PAYLOAD, "x.sh", 2e9)
        store.finish(Result("run.1", Outcome.FAILED, host="web01", exit_code=3), 2e9)
    assert states(store) == {"web01": "failed", "web02": "skipped"}


def test_a_refused_submission_of_before_is_no_start(store: Store) -> None:
    store.record("run.1", WEB01, PAYLOAD, "x.sh", 1.0)
    store.note_state("run.1", "refused")
    with Runs(store).begin("run", [("web01", "run.1")]):
        assert states(store) == {"web01": "waiting"}
    assert states(store) == {"web01": "skipped"}


def test_a_later_submission_counts_more_than_an_earlier_error(store: Store) -> None:
    runs = Runs(store)
    with runs.begin("run", [("web01", "run")]):
        runs.record("run", Result("run", Outcome.UNREACHABLE, host="web01", error_code="host.unreachable"))
    store.record("run", WEB01, PAYLOAD, "x.sh", 2e9)
    assert states(store) == {"web01": "submitted"}


def test_executions_without_a_run_are_found_as_before(store: Store) -> None:
    store.record("old", WEB01, PAYLOAD, "x.sh", 1.0)
    store.record("many.0123456789ab", WEB01, PAYLOAD, "x.sh", 1.0)
    assert states(store, "old") == {"web01": "submitted"}
    assert [host.execution_id for host in Runs(store).hosts("many")] == ["many.0123456789ab"]
    with pytest.raises(ControllerError, match="no execution 'never'") as unknown:
        hosts_of(store, ["never"])
    assert unknown.value.code == "execution.not_found"


def test_an_owner_that_is_killed_leaves_no_lock(store: Store) -> None:
    program = (
        "import os, sys; from pathlib import Path; from cronium_controller.runs import Runs; "
        "from cronium_controller.store import Store; store = Store(Path(sys.argv[1])); "
        "owner = Runs(store).begin('run', [('web01', 'run.1')]); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(store.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        (waiting,) = Runs(store).hosts("run")
        assert Runs(store).look_again(waiting).is_waiting
        process.kill()
    assert not Runs(store).look_again(waiting).is_waiting
    assert states(store) == {"web01": "skipped"}


def test_two_owners_of_one_run(store: Store) -> None:
    runs = Runs(store)
    first = runs.begin("run", [("web01", "run.1")])
    second = runs.begin("run", [("web02", "run.2")])
    assert second is not first
    first.abandon()
    second.close()
    third = runs.begin("run", [("web03", "run.3")])
    assert runs.has_owner("run"), "a lock on a file that another owner has removed would not be found"
    third.close()
    assert list(store.path.parent.glob("runs/*")) == []


def test_another_process_keeps_its_hosts(store: Store) -> None:
    runs = Runs(store)
    first = runs.begin("run", [("web01", "run.1"), ("web02", "run.2")])
    second = runs.begin("run", [("web02", "run.2")])
    second.close()
    assert runs.has_owner("run")
    assert states(store) == {"web01": "waiting", "web02": "waiting"}
    first.close()
    assert states(store) == {"web01": "skipped", "web02": "skipped"}


def test_a_refused_id_keeps_its_execution(store: Store) -> None:
    store.record("run.1", WEB01, PAYLOAD, "x.sh", 1.0)
    store.finish(Result("run.1", Outcome.SUCCEEDED, host="web01", exit_code=0), 2.0)
    with Runs(store).begin("run", [("web01", "run.1")]) as owner:
        assert owner is not None
        Runs(store).record("run", Result("run.1", Outcome.REJECTED, host="web01", error_code="execution.id_conflict"))
    assert states(store) == {"web01": "succeeded"}


def test_a_bad_row_of_a_good_hosts_name_is_another(store: Store) -> None:
    runs = Runs(store)
    with runs.begin("run", [("web01", "run.1"), ("web01", "")]):
        store.record("run.1", WEB01, PAYLOAD, "x.sh", 2e9)
        runs.record("run", Result("", Outcome.MALFORMED, host="web01", error_code="host.config"))
    found = [(host.record is None, host.result and host.result.state) for host in runs.hosts("run")]
    assert found == [(False, None), (True, Outcome.MALFORMED)]


def test_an_error_on_one_host_is_recorded(store: Store) -> None:
    error = UnreachableError("host.unreachable", "no answer", host="web01")
    with pytest.raises(UnreachableError), on_one_host(store, "one", "web01"):
        raise error
    assert states(store, "one") == {"web01": "unreachable"}


@pytest.mark.parametrize(
    ("error", "may_have_started", "outcome"),
    [
        (UnreachableError("host.unreachable", "gone"), False, Outcome.UNREACHABLE),
        (UnreachableError("host.unreachable", "gone"), True, Outcome.UNKNOWN),
        (ChannelLostError("cut"), True, Outcome.UNKNOWN),
        (AuthenticationError("host.auth_failed", "no key fits"), False, Outcome.REFUSED),
        (HostKeyChangedError("another key"), False, Outcome.REFUSED),
        (ControllerError("input.invalid", "no JSON"), False, Outcome.REJECTED),
    ],
)
def test_what_an_error_amounts_to(error: ControllerError, may_have_started: bool, outcome: Outcome) -> None:
    assert outcome_of(error, may_have_started=may_have_started) is outcome
