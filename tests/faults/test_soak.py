"""Nothing accumulates: descriptors, memory, threads, zombies, sockets, files. The long runs are scripts/soak's."""

import pytest

from faults import soaking


@pytest.mark.sshd
@pytest.mark.frozen
def test_a_minute_of_everything_leaves_nothing(request: pytest.FixtureRequest) -> None:
    """It has run since the suite began."""
    status, told = soaking.wait(request.session.items)
    print(told)
    assert status == 0, told
    assert told.endswith("FLAT\n")
