"""Stages and soaks as a person writes them."""

import pytest

from cronium_controller.deploy.stages import cut, parse_soak, parse_stages
from cronium_controller.errors import ControllerError


@pytest.mark.parametrize(
    ("text", "hosts", "counts"),
    [
        ("1,10%,50%,100%", 20, [1, 2, 10, 20]),
        ("1,10%,50%,100%", 5, [1, 3, 5]),
        ("1,10%,50%,100%", 1, [1]),
        ("10%", 25, [3]),
        ("3,5", 4, [3, 4]),
        ("50%,7", 10, [5, 7]),
        ("100%", 10_000, [10_000]),
    ],
)
def test_stages_count_all_hosts_so_far(text: str, hosts: int, counts: list[int]) -> None:
    assert cut(parse_stages(text), hosts) == counts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0%",
        "101%",
        "-1",
        "1.5",
        "1,,2",
        "1, 2",
        "1,2,",
        "%",
        "x",
        "5,5",
        "5,4",
        "50%,10%",
        "1%%",
        "\u0661",
        "+1",
    ],
)
def test_what_is_no_stage_is_refused(text: str) -> None:
    with pytest.raises(ControllerError, match="write increasing stages like 1,10%,50%,100%") as refused:
        parse_stages(text)
    assert (refused.value.code, refused.value.message.count("\n")) == ("usage.invalid", 0)


def test_a_stage_takes_no_host_away() -> None:
    with pytest.raises(ControllerError, match="of 20 hosts 10% are 2, fewer than 10 before it"):
        cut(parse_stages("10,10%"), 20)


def test_how_long_to_soak() -> None:
    assert [parse_soak(text) for text in ("0", "600", "90s", "10m", "2h", "30d")] == [0, 600, 90, 600, 7200, 2592000]
    for text in ("", "m", "1.5m", "-1", "10 m", "31d", "1w", "10M"):
        with pytest.raises(ControllerError, match="--soak"):
            parse_soak(text)
