"""The binary on hosts with little in them and kernels that lack calls: the table's rows that need no other system."""

import os
from pathlib import Path

import pytest

import host_table as hosts
from host_roots import UnavailableError

pytestmark = [
    pytest.mark.frozen,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have another root directory"),
]


@pytest.mark.parametrize("row", hosts.BOUNDED, ids=lambda row: row.name[:40].replace(" ", "-"))
def test_row_of_the_table_of_hosts(row: hosts.Row, binary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        machine = hosts.Machine(row, tmp_path_factory.mktemp("host"), binary)
    except UnavailableError as error:
        pytest.skip(str(error))
    seen = dict(hosts.cells(machine))
    assert [cell for cell in seen.items() if not row.is_as_expected(*cell)] == []
