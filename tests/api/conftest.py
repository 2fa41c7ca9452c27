"""Both databases, and the real service on each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api_process import Platform
from cronium_controller.platform_store import PlatformStore
from postgresql import PostgreSQL, postgresql_folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One server for the session."""
    programs = postgresql_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed, so nothing was tested on it; apt-get install postgresql")
    server = PostgreSQL(programs)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/live.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.create()


@pytest.fixture
def store(database: str) -> Iterator[PlatformStore]:
    """A store on each kind of database."""
    made = PlatformStore(database)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A running service that the tests of one module share, each with executions of its own."""
    made = Platform(tmp_path_factory.mktemp("platform"))
    made.serve()
    yield made
    assert made.stop() == 0, made.log.read_text()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform of this test's own; not started."""
    made = Platform(tmp_path)
    yield made
    made.stop()
