"""`cronium-runner doctor`: each kind of host trouble that can be made here is found, and nothing is harmed."""

import json
import os
from typing import Any

import pytest

from runner_process import Host


def findings(host: Host, exit_status: int = 0, **options: Any) -> dict[str, dict[str, str]]:
    done = host.run("doctor", "--json", **options)
    assert done.returncode == exit_status, done.stderr
    return {told["name"]: told for told in json.loads(done.stdout)["findings"]}


def test_this_host_is_well(host: Host) -> None:
    found = findings(host)
    assert {name for name, told in found.items() if told["level"] == "bad"} == set()
    assert found["state directory"]["seen"] == str(host.state)
    assert os.uname().machine in found["system"]["seen"]
    assert b"ok    state directory" in host.run("doctor").stdout


def test_a_home_that_differs_from_the_password_database_is_noted(host: Host) -> None:
    found = findings(host, env={"HOME": "/nowhere", "CRONIUM_STATE_DIR": None})
    assert "$HOME is /nowhere" in found["home directory"]["seen"]


def test_an_unusable_install_directory_is_bad_and_says_what_to_do(host: Host) -> None:
    (host.folder / "file").write_text("")
    found = findings(host, exit_status=1, env={"CRONIUM_INSTALL_DIR": str(host.folder / "file")})
    assert found["install directory"]["level"] == "bad"
    assert "CRONIUM_INSTALL_DIR" in found["install directory"]["advice"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_temporary_directory_that_is_not_writable_is_noted(host: Host) -> None:
    found = findings(host, env={"TMPDIR": "/proc"})
    assert "not writable" in found["temporary files"]["seen"]
