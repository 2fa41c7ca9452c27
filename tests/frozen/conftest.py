"""What the tests of the binary share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def binary() -> Path:
    """The runner as scripts/build makes it."""
    named = os.environ.get("CRONIUM_TEST_BINARY")
    found = [Path(named)] if named else sorted((ROOT / "dist").glob(f"cronium-runner-*-linux-{os.uname().machine}"))
    if not found:
        pytest.skip("there is no runner binary in dist/; scripts/build makes it")
    return found[-1]
