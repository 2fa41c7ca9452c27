"""Tokens: what they claim, how they are made, and when one is good. HS256 and nothing else.

Pure but for the key's file. Whether a good token was revoked is the store's to say. Only the controller judges time:
hosts' clocks are never looked at.
"""

import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt

from cronium_runner.wire.names import is_execution_id

from ..errors import ControllerError
from ..state_path import default_path

ALGORITHM: Final = "HS256"
ISSUER: Final = "cronium"
AUDIENCE: Final = "cronium-runtime-api"

KEY_BYTES: Final = 32
"""RFC 7518, section 3.2: a key for HS256 is at least as long as its hash."""

LEEWAY_SECONDS: Final = 60
"""Between the clocks of two controllers that share a key and a database."""

SET_UP_SECONDS: Final = 300
CLEAN_UP_SECONDS: Final = 60
"""What an execution may take before and after its script."""

DELIVERY_SECONDS: Final = 3600
"""For what a script wrote while nobody could be reached: an hour's outage needs no new token. It is revoked when
everything has been delivered, so a longer life opens nothing more."""

LONGEST_TOKEN: Final = 8192
"""Characters. Ours have about 500; this is what common HTTP servers take as one header."""

_REQUIRED: Final = ("exp", "iat", "nbf", "aud", "iss", "jti", "sub", "executionId")


class TokenError(Exception):
    """A token that opens nothing. The message is for whoever sent it, and repeats nothing of it."""


class TokenExpiredError(TokenError):
    """It was good once."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token. Times are seconds since the epoch."""

    token: str
    jti: str
    issued_at: int
    expires_at: int

    def __repr__(self) -> str:
        return f"<Issued {self.jti} until {self.expires_at}>"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says, as far as we use it."""

    execution_id: str
    jti: str


class Tokens:
    """Makes and checks tokens with one key. `clock` gives seconds since the epoch."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"a key has at least {KEY_BYTES} bytes")
        self._key = key
        self._clock = clock

    def __repr__(self) -> str:
        return "<Tokens>"

    def issue(
        self, execution_id: str, *, timeout: float, user_id: str, job_id: str | None = None, event_id: Any = None
    ) -> Issued:
        """A token for one execution whose script may run for `timeout` seconds."""
        now = int(self._clock())
        expires_at = now + int(timeout) + 1 + SET_UP_SECONDS + CLEAN_UP_SECONDS + DELIVERY_SECONDS
        jti = secrets.token_hex(16)
        claims = {
            "iss": ISSUER,
            "sub": execution_id,
            "aud": AUDIENCE,
            "jti": jti,
            "iat": now,
            "nbf": now,
            "exp": expires_at,
            "executionId": execution_id,
            "jobId": job_id,
            "userId": user_id,
            "eventId": event_id,
        }
        return Issued(jwt.encode(claims, self._key, ALGORITHM), jti, now, expires_at)

    def check(self, token: str) -> Claims:
        """What a token claims, if it is good. Raises TokenError."""
        try:
            claims = _DECODER.decode(
                token, self._key, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options=_OPTIONS
            )
        except jwt.MissingRequiredClaimError as error:
            raise TokenError(f"the token has no '{error.claim}'") from None
        except jwt.InvalidAudienceError:
            raise TokenError("the token is for somebody else (aud)") from None
        except jwt.InvalidIssuerError:
            raise TokenError("the token is not from here (iss)") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise TokenError("the token is not one of ours, or was changed") from None
        self._check_times(claims)
        return _claims(claims)

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        """PyJWT would ask the machine's clock, which a test can't set."""
        now = self._clock()
        expires_at, not_before, issued_at = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
        if now >= expires_at + LEEWAY_SECONDS:
            raise TokenExpiredError("the token has expired")
        if now < max(not_before, issued_at) - LEEWAY_SECONDS:
            raise TokenError("the token is not good yet")


_OPTIONS: Final[Any] = {
    "require": list(_REQUIRED),
    "verify_exp": False,  # see _check_times
    "verify_nbf": False,
    "verify_iat": False,
    "strict_aud": True,
    "enforce_minimum_key_length": True,
}
_DECODER: Final = jwt.PyJWT()


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise TokenError(f"the token's '{name}' is no time")
    return value


def _claims(claims: Mapping[str, Any]) -> Claims:
    execution_id, jti = claims["executionId"], claims["jti"]
    if not isinstance(execution_id, str) or not is_execution_id(execution_id) or claims["sub"] != execution_id:
        raise TokenError("the token is for no execution")
    if not isinstance(jti, str) or not 1 <= len(jti) <= 64 or not jti.isalnum() or not jti.isascii():
        raise TokenError("the token's 'jti' is none of ours")
    return Claims(execution_id, jti)


def key_path() -> Path:
    """CRONIUM_API_KEY_FILE, else a file beside the controller's database."""
    chosen = os.environ.get("CRONIUM_API_KEY_FILE")
    return Path(chosen) if chosen else default_path().parent / "api.key"


def load_key(path: Path | None = None) -> bytes:
    """The key in the file; a new one, 0600, when there is no file.

    Raises ControllerError (`api.key_unusable`) for a file that others can read, or that holds too little.
    """
    path = path or key_path()
    try:
        if not path.exists():
            _create_key(path)
        return _read_key(path)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None


def _create_key(path: Path) -> None:
    """Two processes may do this at once: whoever links first has made it, and nobody sees half a key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)


def _read_key(path: Path) -> bytes:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
            raise _unusable(path, "it is not a file of yours")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise _unusable(path, f"other users can read it, and make tokens; chmod 600 {path}")
        key = file.read(4096).strip()
    if len(key) < KEY_BYTES:
        raise _unusable(path, f"it holds {len(key)} bytes and needs {KEY_BYTES}; remove it and a new one is made")
    return key


def _unusable(path: Path, reason: str) -> ControllerError:
    return ControllerError("api.key_unusable", f"the key {path} cannot be used: {reason}")
