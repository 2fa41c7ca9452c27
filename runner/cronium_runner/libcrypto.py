"""Verifying one signature with OpenSSL's libcrypto, the library that the binary carries for TLS, by ctypes.

Nothing cryptographic is computed here: a key is written in the encoding that libcrypto reads (RFC 5280, 5480, 8017,
8410), and libcrypto says whether the signature is the key's. Loaded only on hosts that demand signatures.
"""

import functools
import os
import sys
from typing import Any, Final

from .digest import sha256
from .errors import SystemRefusedError
from .wire.sshsig import ED25519, RSA, SK_ECDSA, SK_ED25519, PublicKey, Signature

NAME: Final = "libcrypto.so.3"
_NO_CONFIGURATION: Final = 0x80
"""OPENSSL_INIT_NO_LOAD_CONFIG: what a host's openssl.cnf says must not decide which signature is good."""
_INTEGER, _BITS, _NULL, _IDENTIFIER, _SEQUENCE = 0x02, 0x03, 0x05, 0x06, 0x30
_ED25519: Final = bytes.fromhex("2b6570")
_RSA: Final = bytes.fromhex("2a864886f70d010101")
_EC: Final = bytes.fromhex("2a8648ce3d0201")
_CURVES: Final = {
    b"nistp256": (bytes.fromhex("2a8648ce3d030107"), "EVP_sha256"),
    b"nistp384": (bytes.fromhex("2b81040022"), "EVP_sha384"),
    b"nistp521": (bytes.fromhex("2b81040023"), "EVP_sha512"),
}
"""The object identifier of a curve, and the hash that SSH uses with it."""


def is_signed(signature: Signature, content: bytes) -> bool:
    """Whether the signature's key has signed `content`. Raises SystemRefusedError when libcrypto cannot be used."""
    key = signature.key
    if key.kind in (SK_ED25519, SK_ECDSA):
        content = sha256(key.parts[-1]).digest() + signature.flags + sha256(content).digest()
    if key.kind in (ED25519, SK_ED25519, RSA):
        value = signature.values[0]
    else:
        value = _der(_SEQUENCE, *(_der(_INTEGER, number) for number in signature.values))
    return _verify(_public_key(key), _hash_of(signature), value, content)


def load() -> None:
    """Loads the library ahead, for supervisors that are forked later. Raises SystemRefusedError."""
    _library()


def _hash_of(signature: Signature) -> str | None:
    """libcrypto's name of the hash; None for Ed25519, which has its own."""
    kind = signature.key.kind
    if kind in (ED25519, SK_ED25519):
        return None
    if kind == RSA:
        return "EVP_sha256" if signature.algorithm == "rsa-sha2-256" else "EVP_sha512"
    return _CURVES[signature.key.parts[0]][1]


def _public_key(key: PublicKey) -> bytes:
    """The key as a SubjectPublicKeyInfo."""
    if key.kind in (ED25519, SK_ED25519):
        algorithm, bits = _der(_IDENTIFIER, _ED25519), key.parts[0]
    elif key.kind == RSA:
        exponent, modulus = key.parts
        algorithm = _der(_IDENTIFIER, _RSA) + _der(_NULL)
        bits = _der(_SEQUENCE, _der(_INTEGER, modulus), _der(_INTEGER, exponent))
    else:
        algorithm = _der(_IDENTIFIER, _EC) + _der(_IDENTIFIER, _CURVES[key.parts[0]][0])
        bits = key.parts[1]
    return _der(_SEQUENCE, _der(_SEQUENCE, algorithm), _der(_BITS, b"\0", bits))


def _der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


@functools.cache
def _library() -> Any:
    import ctypes

    folder = getattr(sys, "_MEIPASS", None)  # the binary's own, and never the host's
    path = NAME if folder is None else os.path.join(folder, NAME)
    try:
        library = ctypes.CDLL(path)
        pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
        for name, result, arguments in (
            ("OPENSSL_init_crypto", ctypes.c_int, (ctypes.c_uint64, pointer)),
            ("d2i_PUBKEY", pointer, (pointer, ctypes.POINTER(pointer), ctypes.c_long)),
            ("EVP_PKEY_free", None, (pointer,)),
            ("EVP_MD_CTX_new", pointer, ()),
            ("EVP_MD_CTX_free", None, (pointer,)),
            ("EVP_sha256", pointer, ()),
            ("EVP_sha384", pointer, ()),
            ("EVP_sha512", pointer, ()),
            ("EVP_DigestVerifyInit", ctypes.c_int, (pointer, pointer, pointer, pointer, pointer)),
            ("EVP_DigestVerify", ctypes.c_int, (pointer, text, size, text, size)),
            ("ERR_clear_error", None, ()),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        is_ready = library.OPENSSL_init_crypto(_NO_CONFIGURATION, None) == 1
    except (OSError, AttributeError) as error:
        raise SystemRefusedError(
            f"signatures cannot be checked, because {path} cannot be used: {error}; nothing was started"
        ) from None
    if not is_ready:
        raise SystemRefusedError(f"signatures cannot be checked: {path} does not start; nothing was started")
    return library


def _verify(public_key: bytes, hash_name: str | None, value: bytes, content: bytes) -> bool:
    import ctypes

    library = _library()
    held = ctypes.create_string_buffer(public_key, len(public_key))
    begin = ctypes.addressof(held)
    place = ctypes.c_void_p(begin)
    key = library.d2i_PUBKEY(None, ctypes.byref(place), len(public_key))
    state = library.EVP_MD_CTX_new()
    try:
        if not key or not state or place.value != begin + len(public_key):
            return False
        digest = None if hash_name is None else getattr(library, hash_name)()
        if library.EVP_DigestVerifyInit(state, None, digest, None, key) != 1:
            return False
        return bool(library.EVP_DigestVerify(state, value, len(value), content, len(content)) == 1)
    finally:
        library.EVP_MD_CTX_free(state)
        library.EVP_PKEY_free(key)
        library.ERR_clear_error()
