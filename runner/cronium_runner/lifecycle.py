"""The life of an execution, as one table. ARCHITECTURE.md's diagram is drawn from it.

Only states and the moves between them belong here; who makes a move, and what it costs, is the supervisor's.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where an execution stands. How it ended is its outcome (`wire.results.Outcome`), not its state."""

    PREPARING = "preparing"
    """Payload checked and unpacked beside its final place. The id is not taken yet."""
    CLAIMED = "claimed"
    """The prepared directory was renamed to its id. From here on the id never starts again."""
    RUNNING = "running"
    TERMINATING = "terminating"
    """Deadline, cancel or strays: SIGTERM was sent, SIGKILL follows after the grace period."""
    FINISHED = "finished"
    """result.json is durable."""


MOVES: Final[dict[State, frozenset[State]]] = {
    State.PREPARING: frozenset({State.CLAIMED}),
    State.CLAIMED: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.TERMINATING, State.FINISHED}),
    State.TERMINATING: frozenset({State.FINISHED}),
    State.FINISHED: frozenset(),
}
"""Which state may follow which. A rejection leaves the table: the directory, and with it the id, is given back.

`claimed → finished` is a supervisor that died before the script ran (lost), written down by whoever finds it.
"""


def has_move(current: State, following: State) -> bool:
    """Whether an execution in `current` may become `following`."""
    return following in MOVES[current]
