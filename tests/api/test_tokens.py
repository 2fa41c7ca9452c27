"""Tokens and the key that signs them."""

import base64
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest

from cronium_controller.api.tokens import (
    AUDIENCE,
    CLEAN_UP_SECONDS,
    DELIVERY_SECONDS,
    ISSUER,
    LEEWAY_SECONDS,
    SET_UP_SECONDS,
    TokenError,
    TokenExpiredError,
    Tokens,
    key_path,
    load_key,
)
from cronium_controller.errors import ControllerError

KEY = b"k" * 32
NOW = 1_800_000_000


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(KEY, clock)


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token claims; None takes a claim away."""
    good = {
        "iss": ISSUER, "sub": "one", "aud": AUDIENCE, "jti": "ab12", "iat": NOW, "nbf": NOW, "exp": NOW + 100,
        "executionId": "one", "jobId": "j", "userId": "u", "eventId": "7",
    } | changes  # fmt: skip
    return {name: value for name, value in good.items() if value is not None}


def test_a_token_says_what_the_contract_names(tokens: Tokens) -> None:
    made = tokens.issue("one", timeout=7200, user_id="u", job_id="j", event_id=7)
    header = jwt.get_unverified_header(made.token)
    told = jwt.decode(
        made.token,
        KEY,
        ["HS256"],
        audience=AUDIENCE,
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
    )
    assert header == {"alg": "HS256", "typ": "JWT"}
    assert told == {
        "iss": "cronium", "sub": "one", "aud": "cronium-runtime-api", "jti": made.jti, "iat": NOW, "nbf": NOW,
        "exp": made.expires_at, "executionId": "one", "jobId": "j", "userId": "u", "eventId": 7,
    }  # fmt: skip
    assert made.expires_at >= NOW + 7200 + SET_UP_SECONDS + CLEAN_UP_SECONDS + DELIVERY_SECONDS
    assert tokens.check(made.token).execution_id == "one"
    assert made.token not in repr(made)
    assert KEY.decode() not in repr(tokens)


def test_only_our_clock_judges_with_a_minute_of_leeway(tokens: Tokens, clock: Clock) -> None:
    token = jwt.encode(claims(nbf=NOW + 10), KEY, "HS256")
    for when, verdict in [
        (NOW + 10 - LEEWAY_SECONDS, None),
        (NOW + 10 - LEEWAY_SECONDS - 1, TokenError),
        (NOW + 100 + LEEWAY_SECONDS - 1, None),
        (NOW + 100 + LEEWAY_SECONDS, TokenExpiredError),
    ]:
        clock.now = when
        if verdict is None:
            assert tokens.check(token).jti == "ab12"
        else:
            with pytest.raises(verdict):
                tokens.check(token)


@pytest.mark.parametrize(
    "changes",
    [
        *[{name: None} for name in ("exp", "aud", "jti", "sub", "iat", "nbf", "iss", "executionId")],
        {"aud": "somebody"},
        {"aud": [AUDIENCE]},
        {"aud": [AUDIENCE, "somebody"]},
        {"iss": "somebody"},
        {"sub": "two"},
        {"executionId": "two"},
        {"executionId": "../one", "sub": "../one"},
        {"executionId": 7, "sub": "7"},
        {"jti": ["x"]},
        {"jti": ""},
        {"jti": "x" * 65},
        {"exp": "never"},
        {"exp": True},
        {"exp": 1e400},
        {"exp": NOW - LEEWAY_SECONDS - 1},
        {"nbf": NOW + LEEWAY_SECONDS + 1},
        {"iat": NOW + LEEWAY_SECONDS + 1},
    ],
    ids=lambda changes: " ".join(f"{name}={value}"[:30] for name, value in changes.items()),
)
def test_signed_by_us_and_still_not_good(tokens: Tokens, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        tokens.check(signed(json.dumps({"alg": "HS256"}), json.dumps(claims(**changes))))


def test_what_these_tests_sign_is_good_unchanged(tokens: Tokens) -> None:
    assert tokens.check(signed('{"alg":"HS256"}', json.dumps(claims()))).execution_id == "one"


def signed(header: str, payload: str, key: bytes = KEY) -> str:
    """Signs what PyJWT would refuse to sign."""
    parts = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, payload))
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(parts.encode(), key)
    return f"{parts}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "eyJ.eyJ.sig",
        "\0",
        "ü",
        "=" * 100,
        jwt.encode(claims(), "", "none"),
        jwt.encode(claims(), b"w" * 32, "HS256"),
        jwt.encode(claims(), KEY * 2, "HS512"),
        signed('{"alg":"HS256"}', "[]"),
        signed('{"alg":"HS256"}', "null"),
        signed('{"alg":"HS256"}', "{"),
        signed('{"alg":"HS256"}', "[" * 3000),
        signed('{"alg":"HS256"}', json.dumps(claims()), key=b"w" * 32),
        signed('{"alg":"none"}', json.dumps(claims())),
        signed('{"alg":"HS512"}', json.dumps(claims())),
        signed('{"alg":["HS256"]}', json.dumps(claims())),
        signed('{"alg":"HS256","crit":["x"]}', json.dumps(claims())),
        signed('{"alg":"HS256","b64":false}', json.dumps(claims())),
        signed("[]", json.dumps(claims())),
        signed("{", json.dumps(claims())),
        jwt.encode(claims(), KEY, "HS256") + "A",
        jwt.encode(claims(), KEY, "HS256")[:-4],
    ],
    ids=lambda token: repr(token)[:30],
)
def test_what_is_not_ours(tokens: Tokens, token: str) -> None:
    with pytest.raises(TokenError) as caught:
        tokens.check(token)
    assert not token or len(token) < 3 or token not in str(caught.value)


def test_every_single_changed_character_is_noticed(tokens: Tokens) -> None:
    token = jwt.encode(claims(), KEY, "HS256")
    # The last character's low bits are padding that base64 ignores, so they are no change.
    for place, letter in enumerate(token[:-1]):
        changed = f"{token[:place]}{'A' if letter != 'A' else 'B'}{token[place + 1 :]}"
        with pytest.raises(TokenError):
            tokens.check(changed)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Tokens(b"k" * 31)


def test_the_key_is_made_on_first_use_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "api.key"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: load_key(path), range(16)))
    assert len(found) == 1
    assert len(found.pop()) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["api.key"]


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"k" * 64, 0o640, "other users can read it"),
        (b"k" * 64, 0o604, "other users can read it"),
        (b"k" * 31, 0o600, "holds 31 bytes and needs 32"),
        (b"", 0o600, "holds 0 bytes"),
    ],
)
def test_a_key_that_cannot_be_trusted(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    path = tmp_path / "api.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ControllerError, match=said) as caught:
        load_key(path)
    assert caught.value.code == "api.key_unusable"
    assert str(path) in caught.value.message


def test_a_key_of_another_user(tmp_path: Path, as_root: None) -> None:
    path = tmp_path / "api.key"
    load_key(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(ControllerError, match="not a file of yours"):
        load_key(path)
    with pytest.raises(ControllerError, match="cannot be used"):
        load_key(tmp_path)


def test_where_the_key_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(tmp_path))
    monkeypatch.delenv("CRONIUM_API_KEY_FILE", raising=False)
    assert key_path() == tmp_path / "api.key"
    monkeypatch.setenv("CRONIUM_API_KEY_FILE", "/elsewhere/key")
    assert key_path() == Path("/elsewhere/key")
