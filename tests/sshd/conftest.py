"""Hosts behind real OpenSSH servers with the real binary. Each ends by checking that nothing was left on it."""

import copy
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from openssh import sshd_path
from remote_host import RemoteHost

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def binary() -> Path:
    """The runner as scripts/build makes it."""
    if sshd_path() is None:
        pytest.skip("there is no sshd; install openssh-server")
    named = os.environ.get("CRONIUM_TEST_BINARY")
    found = [Path(named)] if named else sorted((ROOT / "dist").glob(f"cronium-runner-*-linux-{os.uname().machine}"))
    if not found:
        pytest.skip("there is no runner binary in dist/; scripts/build makes it")
    return found[-1]


@pytest.fixture(scope="session")
def install_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runners go on the hosts that share one; the first test that needs a runner puts it there."""
    return tmp_path_factory.mktemp("root")  # numbered: the fault tests have these fixtures, too


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory, binary: Path, install_root: Path) -> Iterator[RemoteHost]:
    with RemoteHost(tmp_path_factory.mktemp("shared"), binary, install_root) as host:
        yield host


@pytest.fixture
def shared(_shared: RemoteHost, connection: str | None) -> RemoteHost:
    """One host for all tests that only look at executions of their own."""
    host = copy.copy(_shared)
    host.connection = connection
    return host


@pytest.fixture
def new_host(
    tmp_path: Path, binary: Path, install_root: Path, connection: str | None
) -> Iterator[Callable[..., RemoteHost]]:
    """`new_host(options=[…], environment={…}, root=…)`: a host of the test's own."""
    with ExitStack() as running:

        def make(*, root: Path | None = None, **how: Any) -> RemoteHost:
            folder = tmp_path / f"host{len(list(tmp_path.glob('host*')))}"
            how = {"connection": connection, **how}
            return running.enter_context(RemoteHost(folder, binary, root or install_root, **how))

        yield make


@pytest.fixture
def alone(new_host: Callable[..., RemoteHost]) -> RemoteHost:
    """A host of the test's own, whose runner may be there already: installing it takes a second of a processor."""
    return new_host()


@pytest.fixture
def fresh(new_host: Callable[..., RemoteHost], tmp_path: Path) -> RemoteHost:
    """A host that has no runner yet."""
    return new_host(root=tmp_path / "root")


@pytest.fixture(autouse=True)
def _own_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API runs in this process: the real account's SSH configuration and agent must not play a part."""
    monkeypatch.setenv("HOME", str(tmp_path / "operator"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(autouse=True)
def _nothing_unheard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails for what asyncio only logs: exceptions that nobody retrieved, tasks destroyed while pending."""
    caplog.set_level(logging.WARNING, "asyncio")
    yield
    gc.collect()
    unheard = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert not unheard, unheard
