"""RevokedHostKeys: a file of public keys, one a line, or a key revocation list (KRL, OpenSSH's PROTOCOL.krl).

Pure: bytes in, answers out. Signatures of a KRL are not checked, as OpenSSH's client does not check them either.
"""

import functools
import hashlib
from typing import Final, NamedTuple

from cronium_runner.wire.ssh_encoding import Reader

from .known_hosts import read_key

_MAGIC: Final = b"SSHKRL\n\0"
_VERSION: Final = 1
_CERTIFICATES, _KEYS, _SHA1, _SIGNATURE, _SHA256, _EXTENSION = 1, 2, 3, 4, 5, 255
_SERIALS, _RANGE, _BITMAP, _KEY_IDS, _CERTIFICATE_EXTENSION = 0x20, 0x21, 0x22, 0x23, 0x39


class Certificate(NamedTuple):
    """What a KRL may name a certificate by: the key of its authority, its serial number and its id."""

    authority: bytes
    serial: int
    key_id: bytes


class RevokedKeys:
    """What such a file revokes."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self._digests: dict[str, set[bytes]] = {"sha1": set(), "sha256": set()}
        self._serials: list[tuple[bytes, int, int]] = []
        """Authority (empty for every one), first and last serial number."""
        self._bitmaps: list[tuple[bytes, int, int]] = []
        """Authority, the serial number of bit 0, the bits."""
        self._ids: set[tuple[bytes, bytes]] = set()

    def has(self, key: bytes, certificate: Certificate | None = None) -> bool:
        """Whether a plain public key in SSH's encoding is revoked, or the certificate that it is shown with."""
        if self._has_key(key):
            return True
        if certificate is None:
            return False
        authorities = (certificate.authority, b"")
        if self._has_key(certificate.authority) or any((each, certificate.key_id) in self._ids for each in authorities):
            return True
        serial = certificate.serial
        if not serial:  # a certificate without a number
            return False
        return any(each in authorities and low <= serial <= high for each, low, high in self._serials) or any(
            each in authorities and serial >= first and bits >> (serial - first) & 1
            for each, first, bits in self._bitmaps
        )

    def _has_key(self, key: bytes) -> bool:
        return key in self._keys or any(
            digests and hashlib.new(name, key).digest() in digests for name, digests in self._digests.items()
        )

    def take_lines(self, content: bytes) -> None:
        """Reads a file of public keys. Raises ValueError for a line that is none: OpenSSH refuses every host then."""
        for number, line in enumerate(content.split(b"\n"), 1):
            text = line.strip()
            if not text or text.startswith(b"#"):
                continue
            key = read_key(text)
            if key is None:
                raise ValueError(f"line {number} is not a public key")
            self._keys.add(key)

    def take_list(self, content: bytes) -> None:
        """Reads a KRL. Raises ValueError for one that is cut off or of a newer kind."""
        reader = Reader(content)
        if reader.take(len(_MAGIC)) != _MAGIC or reader.number(4) != _VERSION:
            raise ValueError("not a key revocation list of version 1")
        reader.take(24)  # its number, when it was made, flags
        reader.string()
        reader.string()  # a comment
        for kind, section in reader.sections():
            if kind == _CERTIFICATES:
                self._take_certificates(Reader(section))
            elif kind == _KEYS:
                self._keys.update(Reader(section).strings())
            elif kind in (_SHA1, _SHA256):
                self._digests["sha1" if kind == _SHA1 else "sha256"].update(Reader(section).strings())
            elif kind == _SIGNATURE:
                return  # nothing but signatures follows
            elif kind != _EXTENSION:
                raise ValueError(f"section of unknown type {kind}")

    def _take_certificates(self, reader: Reader) -> None:
        authority = reader.string()
        reader.string()
        for kind, section in reader.sections():
            inner = Reader(section)
            if kind == _SERIALS:
                while inner.is_left():
                    serial = inner.number(8)
                    self._serials.append((authority, serial, serial))
            elif kind == _RANGE:
                self._serials.append((authority, inner.number(8), inner.number(8)))
            elif kind == _BITMAP:
                self._bitmaps.append((authority, inner.number(8), int.from_bytes(inner.string(), "big")))
            elif kind == _KEY_IDS:
                self._ids.update((authority, key_id) for key_id in inner.strings())
            elif kind != _CERTIFICATE_EXTENSION:
                raise ValueError(f"certificate section of unknown type {kind:#x}")


@functools.lru_cache(maxsize=4)
def _parsed(content: bytes) -> RevokedKeys:
    found = RevokedKeys()
    if content.startswith(_MAGIC):
        found.take_list(content)
    else:
        found.take_lines(content)
    return found


def read(path: str) -> RevokedKeys:
    """What a file revokes. Raises OSError and ValueError; OpenSSH connects to no host then."""
    with open(path, "rb") as file:
        return _parsed(file.read())
