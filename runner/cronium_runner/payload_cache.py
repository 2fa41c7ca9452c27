"""The agent's payload files, by their digest: received, checked, looked up and dropped.

What is in a payload is `payload`'s and `prepare`'s. A file is in the cache complete and with the right digest or not at
all; it may still rot there, which its supervisor notices.
"""

import contextlib
import os
from typing import Final

from . import digest
from .errors import PayloadError
from .jobdir import StateDirectory

MAX_REMEMBERED: Final = 256
"""Payloads whose manifest is known to be parsed: as many as `prepare` keeps."""


class PayloadCache:
    """The payloads of one state directory."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._remembered: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<PayloadCache {self._state.payloads}, {len(self._remembered)} remembered>"

    def path(self, sha256: str) -> str:
        """Where the payload of this digest is, or will be."""
        return self._state.payload_path(sha256)

    def has(self, sha256: str) -> bool:
        """Whether the payload is there. It counts as used now, so it stays for what is done with it."""
        try:
            os.utime(self.path(sha256))
        except OSError:
            return False
        return True

    def receive(self, sha256: str) -> "IncomingPayload":
        """A payload that is about to arrive. Raises OSError when there is no room or no descriptor for it."""
        self._state.ensure_payloads()
        return IncomingPayload(self._state.new_temporary(self._state.payloads), self.path(sha256), sha256)

    def drop(self, sha256: str) -> None:
        """Forgets a payload that has rotted: without it the next submission brings a good one."""
        self._remembered.pop(sha256, None)
        with contextlib.suppress(OSError):
            os.unlink(self.path(sha256))

    def remember(self, sha256: str) -> None:
        """The first job of a payload parses its manifest for all later ones."""
        from .prepare import remember_manifest

        if sha256 in self._remembered:
            return
        remember_manifest(self.path(sha256))
        self._remembered[sha256] = None
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


class IncomingPayload:
    """A payload on its way into the cache: written under a temporary name, kept only if its digest is right."""

    def __init__(self, temporary: str, final: str, sha256: str) -> None:
        self._temporary = temporary
        self._final = final
        self._sha256 = sha256
        self._digest = digest.sha256()
        self._file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._is_open = True

    def write(self, piece: bytes) -> None:
        """Takes the next bytes. Raises OSError when they can't be written."""
        self._digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._file, view) :]

    def finish(self) -> None:
        """Puts the file in its place. Raises PayloadError when it is not what was announced."""
        if self._digest.hexdigest() != self._sha256:
            self.discard()
            raise PayloadError(
                "payload.digest_mismatch",
                f"the payload that arrived has SHA-256 {self._digest.hexdigest()}, announced was {self._sha256}; "
                "send it again",
            )
        self._close()
        os.rename(self._temporary, self._final)

    def discard(self) -> None:
        """Removes what has arrived. Also right after a `write` or `finish` that failed."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(OSError):
                os.close(self._file)
