"""What the controller itself has to know of a payload's manifest: whether the script is to see the runtime API.

All else in a manifest is the runner's matter, which also refuses what can't be used; here that says nothing.
"""

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Final

from .payloads import MANIFESTS, Payload

LONGEST: Final = 256 << 10
"""Bytes of a manifest: what the runner reads at most."""
SEARCHED: Final = 512 << 20
"""Bytes of a payload that are unpacked to find it: what the runner unpacks at most."""
_PIECE: Final = 1 << 20
"""Bytes that are unpacked at a time."""


def exposes_api(payload: Payload) -> bool:
    """Whether the manifest says `expose_api: true`. One that can't be read doesn't."""
    text = _manifest(payload)
    return text is not None and b"expose_api" in text and _is_set(text)


def _is_set(text: bytes) -> bool:
    import yaml

    try:
        root = yaml.compose(text.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return False
    if not isinstance(root, yaml.MappingNode):
        return False
    said = [value for key, value in root.value if key.value == "expose_api"]
    return any(isinstance(value, yaml.ScalarNode) and value.value == "true" and not value.style for value in said)


def _manifest(payload: Payload) -> bytes | None:
    """The manifest's text, None where there is none."""
    source: Any = _Unpacked(payload)  # a stream is only read
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                if member.name.removeprefix("./") in MANIFESTS and member.isreg() and member.size <= LONGEST:
                    found = archive.extractfile(member)
                    return None if found is None else found.read()
    except (tarfile.TarError, zlib.error, OSError, ValueError):
        pass
    return None


class _Unpacked:
    """A payload's tar, of which at most SEARCHED bytes are read: what tarfile takes for a file."""

    def __init__(self, payload: Payload) -> None:
        self._pieces = _unpacked(payload)
        self._waiting = b""

    def read(self, size: int) -> bytes:
        while len(self._waiting) < size and (piece := next(self._pieces, b"")):
            self._waiting += piece
        read, self._waiting = self._waiting[:size], self._waiting[size:]
        return read


def _unpacked(payload: Payload) -> Iterator[bytes]:
    unpacking = zlib.decompressobj(wbits=31)  # 31: gzip's header and trailer
    left = SEARCHED
    for piece in payload.pieces():
        while piece and not unpacking.eof and left > 0:
            plain = unpacking.decompress(piece, _PIECE)
            left -= len(plain)
            yield plain
            piece = unpacking.unconsumed_tail
