"""The binary on other distributions, and on kernels that lack one call each: the rest of the table of hosts."""

import os
import shutil
from pathlib import Path

import pytest

import host_table as hosts

pytestmark = [
    pytest.mark.full,
    pytest.mark.frozen,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have another root directory"),
]


@pytest.mark.parametrize("row", [*hosts.DISTRIBUTIONS, *hosts.KERNELS], ids=lambda row: row.name[:40].replace(" ", "-"))
def test_row_of_the_table_of_hosts(row: hosts.Row, tmp_path_factory: pytest.TempPathFactory) -> None:
    named = os.environ.get("CRONIUM_TEST_BINARY")
    if named is None:
        pytest.skip("there is no runner binary; scripts/build makes it")
    if row in hosts.DISTRIBUTIONS and shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("debootstrap is not installed")
    seen = dict(hosts.cells(hosts.Machine(row, tmp_path_factory.mktemp("host"), Path(named))))
    assert [cell for cell in seen.items() if not row.is_as_expected(*cell)] == []
