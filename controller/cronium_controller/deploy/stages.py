"""The stages of a roll-out and how long to wait between them, as a person writes them. Values only."""

import itertools
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..errors import ControllerError

LONGEST_SOAK: Final = 30 * 86400.0
"""Seconds. A process that waits longer is not what anybody meant."""
_STAGE: Final = re.compile(r"([1-9][0-9]{0,8})(%?)", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd]?)", re.ASCII)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN: Final = 40


class Stage(NamedTuple):
    """How many hosts have the new runner when it ends: a number, or a percentage of all targets."""

    amount: int
    is_percentage: bool

    def __str__(self) -> str:
        return f"{self.amount}{'%' if self.is_percentage else ''}"

    def of(self, hosts: int) -> int:
        """How many of so many hosts that is; a percentage is rounded up, so that 10 % of 5 hosts is one of them."""
        return -(-hosts * self.amount // 100) if self.is_percentage else min(self.amount, hosts)


def parse_stages(text: str) -> list[Stage]:
    """Stages from text like `1,10%,50%,100%`. Raises ControllerError."""
    stages = []
    for part in text.split(","):
        matched = _STAGE.fullmatch(part)
        if matched is None or (matched[2] and int(matched[1]) > 100):
            raise _mistake(text, f"{part[:_SHOWN]!r} is no number from 1 on and no percentage from 1% to 100%")
        stages.append(Stage(int(matched[1]), bool(matched[2])))
    for is_percentage in (False, True):
        alike = [stage for stage in stages if stage.is_percentage is is_percentage]
        for before, stage in itertools.pairwise(alike):
            if stage.amount <= before.amount:
                raise _mistake(text, f"{stage} does not come after {before}: stages count all hosts so far")
    return stages


def cut(stages: Sequence[Stage], hosts: int) -> list[int]:
    """How many of the hosts have been changed at the end of each stage, in increasing order.

    A stage that adds no host is left out. Raises ControllerError for one that would take some away.
    """
    counts: list[int] = []
    before: Stage | None = None
    for stage in stages:
        count = stage.of(hosts)
        if before is not None and count < before.of(hosts):
            raise _mistake(
                ",".join(map(str, stages)),
                f"of {hosts} hosts {stage} are {count}, fewer than {before} before it: stages count all hosts so far",
            )
        before = stage
        if not counts or count > counts[-1]:
            counts.append(count)
    return counts


def _mistake(text: str, why: str) -> ControllerError:
    return ControllerError(
        "usage.invalid", f"--stage {text[:_SHOWN]!r}: {why}; write increasing stages like 1,10%,50%,100%"
    )


def parse_soak(text: str) -> float:
    """Seconds from `600`, `600s`, `10m`, `2h` or `1d`. Raises ControllerError."""
    matched = _DURATION.fullmatch(text)
    seconds = float(int(matched[1]) * _SECONDS[matched[2]]) if matched else -1.0
    if not 0 <= seconds <= LONGEST_SOAK:
        raise ControllerError(
            "usage.invalid", f"--soak {text[:_SHOWN]!r}: write seconds, or like 90s, 10m, 2h or 1d; at most 30d"
        )
    return seconds
