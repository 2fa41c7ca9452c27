"""From a submission to a claim: what preparing may take. What it refuses is in test_cli and test_payload."""

import os
from pathlib import Path

import pytest

from cronium_runner import prepare
from cronium_runner.errors import ExecutionError
from cronium_runner.jobdir import StateDirectory
from cronium_runner.submission import Archive, Submission
from payload_bytes import make_payload


def test_preparing_that_takes_too_long_is_given_up_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.tar.gz"
    members = {"manifest.yaml": b"version: v1\nentrypoint: run.sh\n", "run.sh": b"true\n", "data": os.urandom(64 << 20)}
    large.write_bytes(make_payload(members))
    state = StateDirectory.open(str(tmp_path / "state"))
    monkeypatch.setattr(prepare, "SET_UP_SECONDS", 0.005)
    with pytest.raises(ExecutionError, match=r"within 0.005 s.*host's disk") as refused:
        prepare.prepare(state, Submission("slow", Archive(str(large))))
    assert refused.value.code == "execution.set_up_timeout"
    assert os.listdir(state.executions) == []
    assert not state.is_claimed("slow")
