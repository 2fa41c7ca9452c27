"""The rest of the table of hosts: distributions, containers, and kernels that lack one call each."""

import os
import shutil
from pathlib import Path

import pytest

import host_table as hosts
from host_roots import UnavailableError

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
    folder = tmp_path_factory.mktemp("host")
    try:
        machine = hosts.Machine(row, folder, Path(named))
        seen = dict(hosts.cells(machine))
        assert [cell for cell in seen.items() if not row.is_as_expected(*cell)] == []
        if row.uid:
            assert (machine.root / "home/zoe/.local/lib/cronium-runner").is_dir()  # as the NSS module says
        if row.container:
            check_container(machine)
    except UnavailableError as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(folder)  # a distribution has half a gigabyte


def check_container(machine: hosts.Machine) -> None:
    """It has a filter of system calls, no root of this machine, and no /proc/sys that could be written."""
    shown = machine.start(
        "sh", "-c", "grep ^Seccomp: /proc/self/status; cat /proc/self/uid_map; grep /proc/sys /proc/mounts"
    )
    filtered, first, *_, settings = (line.split() for line in shown.stdout.decode().splitlines())
    assert filtered[1] == "2"
    assert first[1] != "0"
    assert "ro" in settings[3].split(",")
