"""Output as it arrived, compared with the lengths and digests in the result."""

import hashlib
from typing import Any

from cronium_runner.wire.names import STDERR, STDOUT, STREAM_NAMES
from cronium_runner.wire.results import Outcome, Result

from .inbox import Piece


class Received:
    """Length and SHA-256 of each stream as it arrives, from given offsets on."""

    def __init__(self, offsets: tuple[int, int]) -> None:
        self._first = dict(zip(STREAM_NAMES, offsets, strict=True))
        self._sizes = dict.fromkeys(STREAM_NAMES, 0)
        self._digests: dict[int, Any] = {}
        """Of each stream that something has come of, from its beginning on."""

    def add(self, piece: Piece) -> None:
        """Takes the next piece of a stream."""
        self._sizes[piece.stream] += len(piece.data)
        if self._first[piece.stream] == 0:
            if piece.stream not in self._digests:
                self._digests[piece.stream] = hashlib.sha256()
            self._digests[piece.stream].update(piece.data)

    def difference(self, told: Result) -> str | None:
        """A sentence about output that differs from the result; None where none does, or nothing can be compared.

        Of output that was attached to in the middle only the length is compared. Nothing is compared for a record that
        was collected or an execution that was lost, as the spools may be gone.
        """
        if told.error_code == "execution.collected" or told.state is Outcome.LOST:
            return None
        for stream, summary in ((STDOUT, told.stdout), (STDERR, told.stderr)):
            end = self._first[stream] + self._sizes[stream]
            if self._first[stream] > summary.size and not self._sizes[stream]:
                continue  # attached behind its end
            name = STREAM_NAMES[stream]
            if end != summary.size:
                return f"{end} bytes of {name} have arrived, and its result says {summary.size}"
            has_all = self._first[stream] == 0 and summary.sha256 is not None and end > 0
            if has_all and self._digests[stream].hexdigest() != summary.sha256:
                return f"the {end} bytes of {name} that have arrived are others than its result says (SHA-256)"
        return None
