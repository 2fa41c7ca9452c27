"""Fuzzing: no input makes a parser do anything but its work or a clear refusal. What holds is said in the targets.

Bounded here, with the same cases each time; `scripts/test --faults` runs 100,000 cases of each target under hypothesis,
with new ones each time, and as many under atheris, which looks for branches of the runner it hasn't been in.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cronium_runner.wire.frames import Kind
from faults import fuzz_agent, fuzz_targets
from faults.figures import is_full, record
from faults.fuzz_catalogue import LONGEST_INPUT, TARGETS, seeds
from faults.fuzz_source import Source
from runner.test_payload import HOSTILE
from runner_process import AgentProcess, Host

COMMAND = "scripts/test --faults tests/faults/test_fuzz.py"
CASES = 100_000 if is_full() else 250
STREAMS = 200 if is_full() else 4
ATHERIS_CASES = 100_000
ATHERIS_SECONDS = 900
"""A bound for a machine that is busy; what was done by then is recorded as it is."""
STILL_THERE = b"are you there?"
ATHERIS = Path(__file__).with_name("atheris_targets.py")


@pytest.fixture(scope="module", autouse=True)
def _room_in_memory() -> Iterator[None]:
    """Where targets keep their files: in memory where there is such a place, as they make and remove a great many."""
    before = tempfile.tempdir
    tempfile.tempdir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        yield
        fuzz_targets.forget_rooms()
    finally:
        tempfile.tempdir = before


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_gets_past_hypothesis(name: str) -> None:
    done = 0
    began = time.monotonic()

    # Hypothesis by itself draws six bytes on average, and every grammar here is driven by many: so half of the inputs
    # are made long from one number.
    inputs = st.one_of(st.binary(max_size=60), st.integers(0, 2**64 - 1))

    @settings(
        max_examples=CASES,
        derandomize=not is_full(),
        database=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def fuzz(drawn: bytes | int) -> None:
        nonlocal done
        done += 1
        TARGETS[name](drawn if isinstance(drawn, bytes) else random.Random(drawn).randbytes(LONGEST_INPUT))

    fuzz()
    assert done >= CASES
    if is_full():
        record(f"fuzz: {name}, hypothesis", f"{done:,} cases, 0 failures, {time.monotonic() - began:.0f} s", COMMAND)


@pytest.mark.full
def test_no_input_gets_past_atheris(tmp_path: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runs = {name: pool.submit(_run_atheris, name, tmp_path / name.replace(" ", "-")) for name in TARGETS}
    ended = {name: run.result() for name, run in runs.items()}
    failed = {name: told for name, (status, _, told) in ended.items() if status != 0}
    assert not failed, "\n\n".join(f"{name}:\n{told}" for name, told in failed.items())
    for name, (_, figure, _) in ended.items():
        record(f"fuzz: {name}, atheris", figure, COMMAND)


def _run_atheris(name: str, folder: Path) -> tuple[int, str, str]:
    """Exit status, figure and the end of what it said. The case of a failure lies in the folder."""
    corpus, room = folder / "corpus", Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [
        f"-runs={ATHERIS_CASES}",
        f"-max_total_time={ATHERIS_SECONDS}",
        "-timeout=20",
        "-rss_limit_mb=1024",
        "-len_control=0",
    ]
    options = [*limits, f"-max_len={LONGEST_INPUT}", f"-artifact_prefix={folder}/", str(corpus)]
    try:
        done = subprocess.run(
            [sys.executable, str(ATHERIS), name, *options],
            env={**os.environ, "TMPDIR": str(room)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ATHERIS_SECONDS + 120,
        )
    finally:
        shutil.rmtree(room, ignore_errors=True)
    told = done.stdout.decode(errors="replace")
    runs = re.findall(r"Done (\d+) runs in (\d+) second", told)
    covered = re.findall(r"cov: (\d+)", told)
    if not runs:
        return done.returncode or 1, "", told[-6000:]
    figure = f"{int(runs[-1][0]):,} cases, 0 failures, {runs[-1][1]} s, {covered[-1]} branches of the runner seen"
    return done.returncode, figure, told[-6000:]


def test_a_real_agent_lives_through_any_stream_of_frames(host: Host) -> None:
    """The same streams as the in-process target's, to real agents that would start real scripts."""
    ended = 0
    for data in seeds("agent streams")[:STREAMS]:
        source = Source(data)
        content = b"".join(fuzz_agent.frame(source) for _ in range(source.below(12)))
        with host.agent() as agent:
            with contextlib.suppress(BrokenPipeError):  # it has ended the channel already
                agent.send_raw(content)
                agent.send(Kind.PING, 0, STILL_THERE)
            ended += not _answers(agent, content)
            assert agent.close() == 0
        for execution_id in host.executions():
            assert execution_id in fuzz_agent.IDS
            assert b'"%s"' % execution_id.encode() in content
            shutil.rmtree(host.execution(execution_id))
    if is_full():
        record("fuzz: frames to real agents", f"{STREAMS} streams, {ended} ended with ERROR, 0 agents lost", COMMAND)


def _answers(agent: AgentProcess, content: bytes) -> bool:
    """Whether the agent is still there; if it isn't, it has said why, or was told to go."""
    last = None
    while (frame := agent.receive()) is not None:
        if frame.kind == Kind.PONG and frame.body == STILL_THERE:
            return True
        last = frame
    was_told = any(sent.kind == Kind.ERROR and sent.channel == 0 for sent in fuzz_agent.sent(content))
    assert was_told or (last is not None and last.kind == Kind.ERROR), last
    return False


def test_hostile_payloads_are_counted() -> None:
    """They are tests of their own, tests/runner/test_payload.py; here is only their number."""
    assert len(HOSTILE) >= 100
    record(
        "hostile payloads",
        f"{len(HOSTILE)} named, each refused by its code",
        "scripts/test tests/runner/test_payload.py",
    )
