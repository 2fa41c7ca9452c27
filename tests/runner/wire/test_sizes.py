"""How counts of bytes are shown, by both command lines."""

import pytest

from cronium_runner.wire.sizes import readable


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (21_500, "21.5 kB"), (3_200_000, "3.2 MB"),
        (10_737_418_240, "10.7 GB"),
    ],
)  # fmt: skip
def test_counts_have_the_unit_that_suits_them(count: int, shown: str) -> None:
    assert readable(count) == shown
