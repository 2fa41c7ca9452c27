"""OpenSSH's signatures of files (SSHSIG, OpenSSH's PROTOCOL.sshsig, version 1) and the public keys in them.

Bytes and text in, checked values out; stricter than `ssh-keygen -Y verify`, which accepts all that passes here. Whether
a signature is the key's is computed elsewhere: by `libcrypto` on a host, by asyncssh in a controller.
"""

import binascii
from typing import Final, NamedTuple

NAMESPACE: Final = "payload@cronium-runner"
"""What a payload's signature is made for (`ssh-keygen -Y sign -n`): one for another purpose is not taken for it."""
SUFFIX: Final = ".sig"
"""Behind the name of the signed file, as ssh-keygen writes it."""
MAX_BYTES: Final = 16 * 1024
"""Of a signature as text. One by an RSA key of 16384 bits, the longest that OpenSSH makes, takes 6 KiB."""
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 16384

ED25519: Final = "ssh-ed25519"
RSA: Final = "ssh-rsa"
SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"
SK_ECDSA: Final = "sk-ecdsa-sha2-nistp256@openssh.com"
CURVES: Final = {"nistp256": 32, "nistp384": 48, "nistp521": 66}
"""Names of ECDSA's curves, and the bytes of a coordinate."""
KINDS: Final = (ED25519, *(f"ecdsa-sha2-{curve}" for curve in CURVES), RSA, SK_ED25519, SK_ECDSA)

BEGIN: Final = "-----BEGIN SSH SIGNATURE-----"
_END: Final = "-----END SSH SIGNATURE-----"
_MAGIC: Final = b"SSHSIG"
_HASHES: Final = ("sha256", "sha512")
_RSA_ALGORITHMS: Final = ("rsa-sha2-256", "rsa-sha2-512")
_UNCOMPRESSED: Final = 4


class SignatureError(ValueError):
    """A key or signature that cannot be read, or is of a kind that is not supported. Says what is wrong with it."""


class PublicKey(NamedTuple):
    """A public key in SSH's encoding (`blob`) and its parts: see `read_key`."""

    kind: str
    parts: tuple[bytes, ...]
    blob: bytes


class Signature(NamedTuple):
    """A signature of a file. `values` is the raw signature, or ECDSA's r and s; `flags` a security key's last bytes."""

    key: PublicKey
    namespace: str
    hash_name: str
    algorithm: str
    values: tuple[bytes, ...]
    flags: bytes
    blob: bytes
    """The inner signature in SSH's encoding."""

    def signed(self, file_digest: bytes) -> bytes:
        """The bytes that were signed; `file_digest` is the file's, by the hash of `hash_name`."""
        fields = (self.namespace.encode(), b"", self.hash_name.encode(), file_digest)
        return _MAGIC + b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def read(text: str) -> Signature:
    """The signature in the form that `ssh-keygen -Y sign` writes. Raises SignatureError."""
    if len(text) > MAX_BYTES:
        raise SignatureError(f"it is longer than {MAX_BYTES} bytes")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or lines[0] != BEGIN or lines[-1] != _END:
        raise SignatureError(f"it is not between '{BEGIN}' and '{_END}'")
    fields = _Fields(decode_base64("".join(lines[1:-1])))
    if fields.take(len(_MAGIC)) != _MAGIC:
        raise SignatureError("it does not begin with SSHSIG")
    version = int.from_bytes(fields.take(4), "big")
    if version != 1:
        raise SignatureError(f"it is of version {version}; known is 1")
    key = read_key(fields.string())
    namespace = fields.text()
    if fields.string():
        raise SignatureError("its reserved field is in use")
    hash_name = fields.text()
    if hash_name not in _HASHES:
        raise SignatureError(f"its hash is {hash_name[:40]!r}; known are {' and '.join(_HASHES)}")
    blob = fields.string()
    fields.end()
    return _inner(key, namespace, hash_name, blob)


def _inner(key: PublicKey, namespace: str, hash_name: str, blob: bytes) -> Signature:
    fields = _Fields(blob)
    algorithm = fields.text()
    if algorithm not in (_RSA_ALGORITHMS if key.kind == RSA else (key.kind,)):
        raise SignatureError(f"a key of the kind {key.kind} cannot sign by {algorithm[:40]!r}")
    value = fields.string()
    flags = fields.take(5) if key.kind in (SK_ED25519, SK_ECDSA) else b""
    fields.end()
    if key.kind in (ED25519, SK_ED25519):
        if len(value) != 64:
            raise SignatureError(f"a signature by {algorithm} has 64 bytes, not {len(value)}")
        values: tuple[bytes, ...] = (value,)
    elif key.kind == RSA:
        size = len(key.parts[1].lstrip(b"\0"))
        if not 0 < len(value) <= size:
            raise SignatureError(f"a signature by this RSA key has {size} bytes, not {len(value)}")
        values = (value.rjust(size, b"\0"),)
    else:
        inner = _Fields(value)
        values = (inner.positive(), inner.positive())
        inner.end()
    return Signature(key, namespace, hash_name, algorithm, values, flags, blob)


def read_key(blob: bytes) -> PublicKey:
    """A public key from SSH's encoding. Raises SignatureError, also for a kind that is not supported.

    Its parts: Ed25519's 32 bytes; an ECDSA curve's name and point; RSA's exponent and modulus; a security key's
    application behind them.
    """
    fields = _Fields(blob)
    kind = fields.text()
    if kind not in KINDS:
        raise SignatureError(f"keys of the kind {kind[:60]!r} are not supported; use one of {', '.join(KINDS)}")
    parts: list[bytes] = []
    if kind in (ED25519, SK_ED25519):
        parts.append(fields.string())
        if len(parts[0]) != 32:
            raise SignatureError(f"an Ed25519 key has 32 bytes, not {len(parts[0])}")
    elif kind == RSA:
        parts += [fields.positive(), fields.positive()]
        bits = int.from_bytes(parts[1], "big").bit_length()
        if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
            raise SignatureError(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, not {bits}")
    else:
        curve = fields.text()
        if curve != kind.partition("@")[0].rpartition("-")[2]:
            raise SignatureError(f"a key of the kind {kind} cannot be on the curve {curve[:40]!r}")
        point = fields.string()
        if len(point) != 1 + 2 * CURVES[curve] or point[0] != _UNCOMPRESSED:
            raise SignatureError(f"it is not an uncompressed point of {curve}")
        parts += [curve.encode(), point]
    if kind in (SK_ED25519, SK_ECDSA):
        parts.append(fields.string())
    fields.end()
    return PublicKey(kind, tuple(parts), blob)


def fingerprint(digest: bytes) -> str:
    """What OpenSSH shows for a key; `digest` is the SHA-256 of its encoding."""
    return "SHA256:" + binascii.b2a_base64(digest, newline=False).decode().rstrip("=")


def decode_base64(text: str) -> bytes:
    """The bytes of base64 in its one form, padded and without white space. Raises SignatureError."""
    try:
        content = binascii.a2b_base64(text)
    except ValueError:
        content = b""
    if not content or binascii.b2a_base64(content, newline=False).decode() != text:
        raise SignatureError("it is not base64")
    return content


class _Fields:
    """The fields of RFC 4251, section 5. Everything raises SignatureError where they are cut off."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._content[self._at : self._at + count]
        if len(taken) < count:
            raise SignatureError("it is cut off")
        self._at += count
        return taken

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))

    def text(self) -> str:
        try:
            return self.string().decode("ascii")
        except UnicodeDecodeError:
            raise SignatureError("a name in it is not ASCII") from None

    def positive(self) -> bytes:
        """A number above 0 in its one encoding, without superfluous zeros."""
        number = self.string()
        is_minimal = number[:1] != b"\0" or number[1:2] >= b"\x80"
        if not number or number[0] & 0x80 or not is_minimal or number == b"\0":
            raise SignatureError("a number in it is not above 0, or not written as SSH does")
        return number

    def end(self) -> None:
        if self._at != len(self._content):
            raise SignatureError("bytes follow behind its end")
