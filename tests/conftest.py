"""What tests of several folders share: hosts to run on. Each ends by checking that nothing was left behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from runner_process import Host
from skips import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Who is started in the background by a shell, as a CI may be, has these two ignored, and so would every process that a
# test starts. With a handler here they start with the defaults, as from a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Each of the thousands of processes that tests start would compile the sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes is the machine's affair, not the code's.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


_LONGEST: Final = (
    "faults/test_tree.py",
    "faults/test_soak.py",
    "sshd/test_many_hosts.py",
    "conformance/test_helpers.py",
    "faults/test_crash_points.py",
    "controller/test_documented_lines.py",
    "runner/test_supervisor.py",
    "runner/test_api_mode.py",
    "faults/test_kills.py",
    "faults/test_cuts.py",
    "faults/test_fuzz.py",
    "frozen/",
    "sshd/",
    "faults/",
)
"""Files and folders that take longest, the longest first: one begun late has a worker go on alone in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers (xdist, with --no-loadscope-reorder) take files in the order of the items."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(
            key=lambda item: next((at for at, name in enumerate(_LONGEST) if f"tests/{name}" in item.nodeid), 99)
        )


@pytest.fixture(scope="session")
def install_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the helper folder is made, once a session: it is the same for every test."""
    return tmp_path_factory.mktemp("install", numbered=False)


@pytest.fixture
def host(tmp_path: Path, install_directory: Path) -> Iterator[Host]:
    """A host of this test's own."""
    made = Host(tmp_path, install_directory)
    yield made
    made.check_nothing_left()


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory, install_directory: Path) -> Iterator[Host]:
    """A host that the tests of one module share, for those that only look at their own execution."""
    made = Host(tmp_path_factory.mktemp("shared"), install_directory)
    yield made
    made.check_nothing_left()


@pytest.fixture
def connection(request: pytest.FixtureRequest) -> str | None:
    """What hosts are connected to by; None: as they say themselves. `kinds.BOTH` makes a test for two kinds."""
    kind: str | None = getattr(request, "param", None)
    return kind


@pytest.fixture
def as_root() -> None:
    """Skips unless root: for what only root can prepare."""
    if os.geteuid() != 0:
        pytest.skip("only root can prepare this")
