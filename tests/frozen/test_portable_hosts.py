"""The binary on hosts with little in them and kernels that lack calls: the table's rows that need no other system."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import host_table as hosts

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.frozen,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have another root directory"),
]


@pytest.mark.parametrize("row", hosts.BOUNDED, ids=lambda row: row.name[:40].replace(" ", "-"))
def test_row_of_the_table_of_hosts(row: hosts.Row, binary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    if row.words[:1] == ("strace",):
        tracing = [*row.words, "true"]
        if not shutil.which("strace") or subprocess.run(tracing, capture_output=True, check=False).returncode != 0:
            pytest.skip("strace is not installed, or not permitted")
    folder = tmp_path_factory.mktemp("host")
    seen = dict(hosts.cells(hosts.Machine(row, folder, binary)))
    assert [cell for cell in seen.items() if not row.is_as_expected(*cell)] == []
