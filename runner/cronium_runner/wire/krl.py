"""Lists of revoked keys as `ssh-keygen -k` writes them (KRL, OpenSSH's PROTOCOL.krl), of plain keys only.

Bytes in, checked values out. Stricter than OpenSSH: what says anything else than keys and their fingerprints is refused
as a whole. The format has no length and no checksum: a list that was cut off between two sections cannot be told.
"""

from typing import Final, NamedTuple

from .ssh_encoding import Reader, key_type

MAGIC: Final = b"SSHKRL\n\0"
_VERSION: Final = 1
_CERTIFICATES, _KEYS, _SHA1, _SIGNATURE, _SHA256 = 1, 2, 3, 4, 5
_SIZES: Final = {_SHA1: 20, _SHA256: 32}
_REFUSED: Final = {
    _CERTIFICATES: "it is a KRL that revokes certificates, which sign nothing here; make it of public keys",
    _SIGNATURE: "it is a KRL that is signed, which nobody checks here; make it without a signature",
}


class KeyList(NamedTuple):
    """Keys in SSH's encoding, and the digests of such."""

    keys: frozenset[bytes]
    sha1: frozenset[bytes]
    sha256: frozenset[bytes]


def read(content: bytes) -> KeyList:
    """Reads a list. Raises ValueError, which says what is wrong with it."""
    reader = Reader(content)
    if reader.take(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as a KRL")
    version = reader.number(4)
    if version != _VERSION:
        raise ValueError(f"it is a KRL of version {version}; known is {_VERSION}")
    reader.take(16)  # its number, and when it was made
    if reader.number(8) or reader.string():
        raise ValueError("it is a KRL whose flags or reserved field are in use")
    reader.string()  # a comment
    found: dict[int, set[bytes]] = {_KEYS: set(), _SHA1: set(), _SHA256: set()}
    for kind, section in reader.sections():
        if kind not in found:
            raise ValueError(_REFUSED.get(kind, f"it is a KRL with a section of type {kind}, which is not known"))
        entries = list(Reader(section).strings())
        if not entries or not all(_is_right(kind, entry) for entry in entries):
            raise ValueError(f"it is a KRL with a section of type {kind} that is not of keys or their digests")
        found[kind].update(entries)
    return KeyList(frozenset(found[_KEYS]), frozenset(found[_SHA1]), frozenset(found[_SHA256]))


def _is_right(kind: int, entry: bytes) -> bool:
    return len(entry) == _SIZES[kind] if kind in _SIZES else key_type(entry) != b""
