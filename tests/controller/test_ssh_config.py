"""What OpenSSH's configuration says: our own reader against `ssh -G`, and when `ssh` is asked."""

import shutil
from pathlib import Path

import pytest

import ssh_configurations
from cronium_controller import ssh_lines, ssh_reader
from ssh_configurations import ROWS, Row


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_our_reader_says_what_ssh_says(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OTHER_AGENT", "/agents/other")
    ssh_configurations.write(row, tmp_path)
    assert ssh_configurations.ours(row, tmp_path) == ssh_configurations.theirs(row, tmp_path)
    assert not (tmp_path / "ran").exists()
    if row.is_simple is not None:
        found = ssh_reader.survey(ssh_lines.load(str(tmp_path / "system")), row.asked)
        assert found.is_simple is row.is_simple
