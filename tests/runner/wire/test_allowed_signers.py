"""The allowed signers file: what is read, what makes it unusable, and that `ssh-keygen -Y verify` agrees."""

import calendar
from pathlib import Path

import pytest

import signing
from cronium_runner.wire import allowed_signers
from cronium_runner.wire.allowed_signers import SignersError, matches, revoked, signers
from cronium_runner.wire.sshsig import NAMESPACE, decode_base64

pytestmark = signing.needs_ssh_keygen
CONTENT = b"a payload\n"
NOW = 1_790_000_000.0
"""2026-09-21, for what is only computed."""


class Signed:
    """A key, and its signature of CONTENT."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public = signing.public(path := signing.key(folder))
        self.signature = signing.signature(path, CONTENT)

    def is_accepted(self, allowed: str, identity: str) -> bool:
        return signing.accepts(self.folder, allowed, identity, self.signature, CONTENT)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return Signed(tmp_path_factory.mktemp("keys"))


def utc(*moment: int) -> float:
    return float(calendar.timegm(moment))


ACCEPTED = [
    "alice {key}",
    'alice {key} a comment, with "quotes"',
    "  alice\t{key}",
    '"alice bob" {key}',
    "alice@example.com,bob@example.com {key}",
    "*@example.com {key}",
    "b?b {key}",
    "!eve@example.com,*@example.com {key}",
    "*,!signer {key}",
    f'alice namespaces="{NAMESPACE}" {{key}}',
    'alice namespaces="file,payload@*" {key}',
    'alice namespaces="!git,*" {key}',
    'alice NAMESPACES="*" {key}',
    'alice valid-after="20200101" {key}',
    'alice valid-after="20200101Z",valid-before="20990101000000Z" {key}',
    'alice valid-before="209901010000",namespaces="*" {key}',
    "# nothing\n\n  # more\nalice {key}\n\n",
    "bob {other}\nalice {key}",
    'alice valid-before="20200101Z" {key}\nalice {key}',
]
NOT_NOW = [
    'alice valid-before="20200101Z" {key}',
    'alice valid-after="20990101Z" {key}',
    'alice namespaces="file" {key}',
    'alice namespaces="*,!payload@*" {key}',
    'alice namespaces="" {key}',
    "alice {other}",
]
UNUSABLE = [
    ("alice", "the principals are one word"),
    ("{key}", "an option ends"),
    ("alice namespaces={key}", "an option ends"),
    ("alice namespaces=file {key}", "values are between quotation marks"),
    ('alice namespaces="file {key}', "an option ends|neither an option nor a key"),
    ('alice namespaces="file",{key}', "an option ends"),
    ('alice namespaces="a",namespaces="*" {key}', "there twice"),
    ('alice namespaces="*", valid-before="20990101" {key}', "neither an option nor a key"),
    ("alice cert-authority {key}", "certificate authorities are not supported"),
    ('alice cert-authority,namespaces="*" {key}', "certificate authorities are not supported"),
    ("alice CERT-AUTHORITY {key}", "certificate authorities are not supported"),
    ("alice no-touch-required {key}", "is not supported|there is no|base64"),
    ('alice valid-before="tomorrow" {key}', "is not a time"),
    ('alice valid-before="20260231Z" {key}', "is not a time"),
    ('alice valid-before="20261301Z" {key}', "is not a time"),
    ('alice valid-before="2026010124" {key}', "is not a time"),
    ('alice valid-before="19700101Z" {key}', "before 1970"),
    ('alice valid-before="" {key}', "is not a time"),
    ('alice valid-after="20260101Z",valid-before="20250101Z" {key}', "not behind valid-after"),
    ("!alice {key}", "no name is found"),
    ("alice,!alice {key}", "no name is found"),
    ("!*,alice {key}", "no name is found"),
    (", {key}", "no name is found"),
    ('"alice {key}', "quotation mark is missing"),
    ('al"ice {key}', "one word, or between"),
    ('"alice"{key}', "one word, or between"),
    ("alice ssh-ed25519 AAAA", "cut off"),
    ("alice ssh-ed25519 {base64}=", "not base64"),
    ("alice ssh-ed25519 {base64}AAAA", "bytes follow"),
    ("alice ssh-rsa {base64}", "of the kind ssh-ed25519 and not ssh-rsa"),
    ("alice ssh-dss AAAAB3NzaC1kc3MAAAAA", "'ssh-dss' are not supported"),
    ("alice ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29t", "are not supported"),
    ("alice {key}\r", "control character"),
    ("alice {key} a\0b", "control character"),
    ("good {key}\nalice", "line 2"),
]


def filled(text: str, signed: Signed, other: str) -> str:
    return text.format(key=signed.public, other=other, base64=signed.public.split()[1])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return signing.public(signing.key(tmp_path_factory.mktemp("other")))


def trusted(text: str, signed: Signed) -> "list[allowed_signers.Signer]":
    """The lines that trust the key for payloads, now."""
    blob = signed.public.split()[1]
    found = signers(text.encode(), utc)
    return [
        one for one in found if one.is_for(NAMESPACE) and one.is_valid_at(NOW) and decode_base64(blob) == one.key.blob
    ]


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_is_trusted_ssh_keygen_accepts(signed: Signed, other: str, text: str) -> None:
    text = filled(text, signed, other)
    [*_, line] = trusted(text, signed)
    assert signed.is_accepted(text, line.identity)


@pytest.mark.parametrize("text", NOT_NOW)
def test_what_is_not_trusted_ssh_keygen_refuses(signed: Signed, other: str, text: str) -> None:
    text = filled(text, signed, other)
    assert trusted(text, signed) == []
    assert not signed.is_accepted(text, "alice")


@pytest.mark.parametrize(("text", "why"), UNUSABLE)
def test_a_line_that_cannot_be_read_refuses_the_file(signed: Signed, other: str, text: str, why: str) -> None:
    with pytest.raises(SignersError, match=why) as refused:
        signers(filled(text, signed, other).encode(), utc)
    assert str(refused.value).startswith("line ")


def test_a_file_that_is_no_text_is_refused() -> None:
    with pytest.raises(SignersError, match="line 2 is not UTF-8"):
        signers(b"# one\nalice \xff\n", utc)
    with pytest.raises(SignersError, match="larger than 1024 KiB"):
        signers(b"#" * (allowed_signers.MAX_BYTES + 1), utc)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20260301Z", (2026, 3, 1, 0, 0, 0)),
        ("20240229235959utc", (2024, 2, 29, 23, 59, 59)),
        ("210001010101z", (2100, 1, 1, 1, 1, 0)),
    ],
)
def test_a_time_of_utc_is_the_calendars(signed: Signed, text: str, moment: tuple[int, ...]) -> None:
    def no_local_time(*_: int) -> float:
        raise AssertionError("it is UTC")

    [line] = signers(f'a valid-before="{text}" {signed.public}'.encode(), no_local_time)
    assert line.valid_before == calendar.timegm(moment)


def test_a_time_without_a_zone_is_the_hosts(signed: Signed) -> None:
    [line] = signers(f'a valid-before="20260301" {signed.public}'.encode(), lambda *moment: utc(*moment) - 3600)
    assert line.valid_before == calendar.timegm((2026, 2, 28, 23, 0, 0))


@pytest.mark.parametrize(
    ("patterns", "taken", "refused"),
    [
        ("a*b", ("ab", "a*b", "axxb", "abab"), ("a", "abc", "")),
        ("?", ("x",), ("", "xx")),
        ("*", ("", "x"), ()),
        ("a,!ab*", ("a",), ("abc", "b")),
        ("*" + "a*" * 100, ("a" * 100,), ("a" * 99, "b" * 10_000)),
    ],
)
def test_patterns_are_openssh_s(patterns: str, taken: tuple[str, ...], refused: tuple[str, ...]) -> None:
    assert [text for text in (*taken, *refused) if matches(text, patterns)] == list(taken)


def test_revoked_keys_are_keys_or_fingerprints(signed: Signed) -> None:
    fingerprint = "SHA256:" + "A" * 43
    found = revoked(f"# old ones\n{signed.public} alice\n\n{fingerprint} bob's\n".encode())
    assert found.keys == {decode_base64(signed.public.split()[1])}
    assert found.fingerprints == {fingerprint}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SSHKRL\n\0\0\0\0\1", "it is cut off"),
        ("SHA256:short", "line 1 is neither"),
        ("MD5:00:11", "line 1 is neither"),
        ("alice", "line 1 is neither"),
        ("\nssh-rsa AAAAC3NzaC1lZDI1NTE5", "line 2 is neither"),
        ("ssh-ed25519 ????", "line 1 is neither"),
    ],
)
def test_a_revocation_that_cannot_be_read_is_refused(text: str, why: str) -> None:
    with pytest.raises(SignersError, match=why):
        revoked(text.encode())
