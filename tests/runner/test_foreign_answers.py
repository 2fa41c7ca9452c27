"""API mode where something on the way answers for the platform, or the platform is the public original's.

Nothing waits here: a clock is put forward by each pause.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cronium_runner import api_values
from cronium_runner.api_values import ApiValues
from cronium_runner.delivery import Delivery
from cronium_runner.helpers import execute, parse
from cronium_runner.jobdir import ExecutionDirectory, StateDirectory
from cronium_runner.journal import Journal
from cronium_runner.platform_client import PATIENCE, PlatformClient
from cronium_runner.wire.access import Access
from stub_platform import FOREIGN, TOKEN, OriginalPlatform, StubPlatform, Upset

TRIES = 3
"""Of a read before it fails, and of a write that is then left."""


class Job:
    """The values of a script in API mode, what its helpers print, and a delivery that is done when it is told to."""

    def __init__(
        self, folder: Path, platform: StubPlatform, monkeypatch: pytest.MonkeyPatch, **handed_over: Any
    ) -> None:
        self.now, self.tries = 0.0, 0
        monkeypatch.setattr(api_values, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(PlatformClient, "pause", lambda _client, _seconds: self._pause())
        monkeypatch.setattr(Delivery, "notify", lambda _delivery: None)
        work = folder / "work"
        work.mkdir()
        access = Access(platform.endpoint, TOKEN)
        self.values = ApiValues(str(work), execution_id="e", access=access, **handed_over)
        self.journal = Journal(ExecutionDirectory(StateDirectory(str(folder)), "e", path=str(folder)))
        self.delivery = self.values.go_live(self.journal, lambda: None)

    def _pause(self) -> None:
        self.tries += 1
        self.now += PATIENCE / TRIES + 0.01
        if self.tries == TRIES:
            self.delivery.stop()

    def call(self, *words: str) -> str:
        """What a helper prints, on either stream."""
        self.values.begin(self.now)
        answer = execute(parse([word.encode() for word in words]), self.values)
        assert (answer.status == 0) == (not answer.stderr)
        return (answer.stdout + answer.stderr).decode().removesuffix("\n")

    def deliver(self) -> tuple[int, int]:
        """Delivers what is in the journal, until it was tried TRIES times in vain; what is left, what was refused."""
        self.delivery = self.values.go_live(self.journal, lambda: None)
        self.tries = 0
        while (entry := self.journal.first()) is not None and self.tries < TRIES:
            self.delivery._deliver(entry)
        return self.journal.undelivered, self.journal.refusals

    def close(self) -> None:
        """Closes the connections."""
        client = self.values._client._client
        if client is not None:
            client.close()


NewJob = Callable[..., Job]


@pytest.fixture
def new_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewJob]:
    """Makes the job of a test."""
    with contextlib.ExitStack() as made:

        def make(platform: StubPlatform, **handed_over: Any) -> Job:
            job = Job(tmp_path, platform, monkeypatch, **handed_over)
            made.callback(job.close)
            return job

        yield make


@pytest.fixture(scope="module")
def shared() -> Iterator[StubPlatform]:
    with StubPlatform() as made:
        yield made


@pytest.fixture(params=FOREIGN)
def name(request: pytest.FixtureRequest) -> str:
    """Of a foreign answer."""
    return str(request.param)


def test_no_intermediary_is_taken_for_the_platform(shared: StubPlatform, name: str, new_job: NewJob) -> None:
    upset, said = FOREIGN[name]
    shared.asked.clear()
    shared.upset = lambda _: upset
    job = new_job(shared, input="old", variables={"V": "old"}, event={"name": "old"})
    for words, what in {
        ("cronium.input",): "the input",
        ("cronium.getVariable", "--default", "none", "V"): "variable 'V'",
        ("cronium.event",): "the context",
    }.items():
        printed = job.call(*words)
        assert printed.startswith(f"Error: the platform did not tell {what} within 10 s (")
        assert said in printed
    assert len(shared.asked) == 3 * TRIES
    printed = job.call("cronium.executeToolAction", "mail", "send")
    assert printed.startswith("Error: the platform gave no answer, so whether 'mail' has acted is not known: ")
    assert said in printed
    assert len(shared.asked) == 3 * TRIES + 1, "an action is never repeated"
    for words in (("cronium.setVariable", "A", "1"), ("cronium.output", "k", "v"), ("cronium.setCondition", "yes")):
        assert job.call(*words) == ""
    assert job.deliver() == (3, 0)
    assert {one.headers["idempotency-key"] for one in shared.asked[-TRIES:]} == {"e/1"}, "in order"


def test_what_was_left_arrives_when_the_platform_answers_again(shared: StubPlatform, new_job: NewJob) -> None:
    shared.upset = lambda _: FOREIGN["a page"][0]
    job = new_job(shared)
    job.call("cronium.setVariable", "A", "1")
    job.call("cronium.setVariable", "B", "2")
    assert job.deliver() == (2, 0)
    shared.upset = lambda _: None
    assert job.deliver() == (0, 0)
    assert shared.variables == {"A": "1", "B": "2"}


@pytest.mark.parametrize("status", [413, 414, 431])
def test_a_request_that_is_too_large_for_a_proxy_is_refused(shared: StubPlatform, status: int, new_job: NewJob) -> None:
    shared.upset = lambda seen: Upset(status, content=b"<html>") if seen.path.endswith("A") else None
    job = new_job(shared)
    job.call("cronium.setVariable", "A", "1")
    job.call("cronium.setVariable", "B", "3")
    assert job.deliver() == (0, 1)
    assert job.journal.refusal == f"variable 'A': status {status}"
    assert shared.variables["B"] == "3"


def test_an_answer_without_end_is_not_kept(
    shared: StubPlatform, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cronium_runner.platform_client.LARGEST_ANSWER", 1 << 20)
    shared.upset = lambda _: None
    shared.input = "x" * (1 << 20)
    try:
        assert "its answer has more than 1 MiB" in new_job(shared).call("cronium.input")
    finally:
        shared.input = None


# The public original's server.


@pytest.fixture
def original() -> Iterator[OriginalPlatform]:
    with OriginalPlatform() as made:
        yield made


def test_a_missing_variable_of_the_original(original: OriginalPlatform, new_job: NewJob) -> None:
    job = new_job(original, variables={"GIVEN": "handed over"})
    assert job.call("cronium.getVariable", "--default", "none", "V") == "none"
    assert job.call("cronium.getVariable", "V") == "Error: variable 'V' not found"
    assert job.call("cronium.getVariable", "GIVEN") == "handed over"
    assert (job.tries, len(original.asked)) == (0, 3)
    original.variables["V"] = None
    assert job.call("cronium.getVariable", "V") == "null"


def test_blank_values_of_its_context_replace_nothing(original: OriginalPlatform, new_job: NewJob) -> None:
    known = {
        "id": "7",
        "name": "Backup",
        "type": "BASH",
        "user": "u",
        "startTime": "2026-01-02T03:04:05Z",
        "metadata": {},
    }
    job = new_job(original, event=known)
    for field, value in known.items():
        assert job.call("cronium.event", field) == (value if isinstance(value, str) else "{}")
    original.context = {"eventName": "Its own", "startTime": "2026-02-03T04:05:06Z"}
    assert job.call("cronium.event", "name") == "Its own"
    assert job.call("cronium.event", "startTime") == "2026-02-03T04:05:06Z"
    assert job.call("cronium.event", "user") == "u"


def test_it_has_no_input_and_takes_writes(original: OriginalPlatform, new_job: NewJob) -> None:
    job = new_job(original, input={"k": 1})
    assert job.call("cronium.input", "k") == "1"
    original.input = {"k": 2}
    assert job.call("cronium.input", "k") == "2"
    for words in (("cronium.setVariable", "A", "1"), ("cronium.output", "k", "v"), ("cronium.setCondition", "yes")):
        job.call(*words)
    assert job.deliver() == (0, 0)
    assert (original.variables, original.output, original.condition) == ({"A": "1"}, {"k": "v"}, True)


@pytest.mark.parametrize("takes_config", [True, False])
def test_a_tool_of_the_original(original: OriginalPlatform, takes_config: bool, new_job: NewJob) -> None:
    original.takes_config = takes_config
    job = new_job(original)
    words = ("cronium.executeToolAction", "mail", "send", '{"to": "x"}')
    assert job.call(*words) == '{"did":"send"}'
    assert original.tools == [{"tool": "mail", "action": "send", "got": {"to": "x"}}]
    original.tool_error = "no such channel"
    assert job.call(*words) == "Error: 'mail' failed: no such channel"
    assert len(original.tools) == 2, "never repeated"
