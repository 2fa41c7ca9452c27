"""What the fault tests share: the hosts behind real OpenSSH servers are those of tests/sshd."""

import pytest

from faults import soaking
from faults.figures import is_full
from sshd.conftest import _own_account, _shared, binary, fresh, install_root, new_host, shared

__all__ = ["_own_account", "_shared", "binary", "fresh", "install_root", "new_host", "shared"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that have no bounded form are marked `full`, and only run when everything does."""
    soaking.put_last(items)
    if not is_full():
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="only in full: scripts/test --faults"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """The soak runs beside the other tests."""
    if not session.config.option.collectonly and not soaking.is_worker():
        soaking.begin(session.items)


def pytest_sessionfinish() -> None:
    """And ends with them."""
    soaking.end()
