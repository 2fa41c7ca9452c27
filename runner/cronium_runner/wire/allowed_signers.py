"""Who may sign: OpenSSH's ALLOWED SIGNERS format (ssh-keygen(1)), and a list of revoked keys.

Bytes in, checked values out. Stricter than OpenSSH, which skips what it cannot read: one such line makes the whole file
unusable, because nobody knows what it was to say. Certificate authorities are not supported and refused.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from . import krl
from .sshsig import PublicKey, Signature, SignatureError, decode_base64, fingerprint, read_key

LocalTime = Callable[[int, int, int, int, int, int], float]
"""Seconds since the epoch of a local year, month, day, hour, minute and second. Raises OverflowError and ValueError."""

MAX_BYTES: Final = 1024 * 1024
"""Of such a file: some 7,000 keys."""
_KIND: Final = re.compile(r"[a-z0-9][a-z0-9.@-]*")
_OPTION: Final = re.compile(r'(?P<name>[A-Za-z-]+)(?:="(?P<value>(?:[^"\\]|\\.)*)")?')
_TIME: Final = re.compile(r"(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?(Z|UTC)?", re.ASCII | re.IGNORECASE)
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}", re.ASCII)
_AUTHORITY: Final = "cert-authority"


class SignersError(ValueError):
    """A file that cannot be used as it is. Says which line, and what is wrong with it."""


class Signer(NamedTuple):
    """One line: a key and what it may sign. Times are seconds since the epoch; `identity` is a name that matches."""

    line: int
    principals: str
    identity: str
    key: PublicKey
    namespaces: str | None = None
    valid_after: float | None = None
    valid_before: float | None = None

    def is_for(self, namespace: str) -> bool:
        """Whether the key may sign for this purpose."""
        return self.namespaces is None or matches(namespace, self.namespaces)

    def is_valid_at(self, now: float) -> bool:
        """Whether that time lies within the line's own."""
        return (self.valid_after is None or now >= self.valid_after) and (
            self.valid_before is None or now <= self.valid_before
        )


class Revoked(NamedTuple):
    """Keys in SSH's encoding, fingerprints as OpenSSH shows them, and SHA-1 digests of keys, which a KRL may have."""

    keys: frozenset[bytes] = frozenset()
    fingerprints: frozenset[str] = frozenset()
    sha1: frozenset[bytes] = frozenset()

    def has(self, key: bytes, shown: str) -> bool:
        """Whether a key is revoked; `shown` is its fingerprint."""
        if key in self.keys or shown in self.fingerprints:
            return True
        if not self.sha1:
            return False
        import hashlib  # costs a start milliseconds, and few lists have SHA-1

        return hashlib.sha1(key, usedforsecurity=False).digest() in self.sha1


class UntrustedError(ValueError):
    """A signature by a key that may not sign, or not now. `reason` is `unknown`, `expired` or `revoked`."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Policy(NamedTuple):
    """Who may sign, and which keys no longer."""

    signers: "list[Signer]"
    revoked: "Revoked" = Revoked()

    def signer_of(self, signature: Signature, shown: str, now: float) -> "Signer":
        """The line that lets the signature's key sign for its purpose at that time; `shown` is its fingerprint.

        Raises UntrustedError. Whether the signature is the key's is not looked at.
        """
        key = signature.key.blob
        if self.revoked.has(key, shown):
            raise UntrustedError("revoked", f"{shown} is revoked")
        lines = [signer for signer in self.signers if signer.key.blob == key]
        if not lines:
            raise UntrustedError("unknown", f"{shown} is not an allowed signer")
        lines = [signer for signer in lines if signer.is_for(signature.namespace)]
        if not lines:
            raise UntrustedError("unknown", f"{shown} is an allowed signer, but not for {signature.namespace}")
        for signer in lines:
            if signer.is_valid_at(now):
                return signer
        numbers = ", ".join(str(signer.line) for signer in lines)
        raise UntrustedError("expired", f"{shown} is not valid now (valid-after and valid-before of line {numbers})")


def signers(content: bytes, local_time: LocalTime) -> list[Signer]:
    """The lines of an allowed signers file. Times without a zone are the host's. Raises SignersError."""
    return [_signer(number, line, local_time) for number, line in _lines(content)]


def revoked(content: bytes) -> Revoked:
    """A list of public keys and SHA-256 fingerprints, one a line, or a KRL of plain keys. Raises SignersError."""
    if content.startswith(krl.MAGIC):
        return _revoked_by_krl(content)
    keys, fingerprints = set(), set()
    for number, line in _lines(content):
        words = line.split(maxsplit=2)
        if _FINGERPRINT.fullmatch(words[0]):
            fingerprints.add(words[0])
            continue
        try:
            blob = decode_base64(words[1] if len(words) > 1 else "")
        except SignatureError:
            blob = b""
        kind = words[0].encode()
        if not blob.startswith(len(kind).to_bytes(4, "big") + kind):
            raise SignersError(f"line {number} is neither a public key nor a SHA256 fingerprint")
        keys.add(blob)
    return Revoked(frozenset(keys), frozenset(fingerprints))


def _revoked_by_krl(content: bytes) -> Revoked:
    _check_size(content)
    try:
        found = krl.read(content)
    except ValueError as error:
        raise SignersError(str(error)) from None
    return Revoked(found.keys, frozenset(map(fingerprint, found.sha256)), found.sha1)


def matches(text: str, patterns: str) -> bool:
    """Whether OpenSSH's list of patterns takes the text: one that is not negated does, and no negated one."""
    has_matched = False
    for pattern in patterns.split(","):
        if _is_like(text, pattern.removeprefix("!")):
            if pattern.startswith("!"):
                return False
            has_matched = True
    return has_matched


def _is_like(text: str, pattern: str) -> bool:
    """With `*` and `?`, in time that is bounded by the product of both lengths."""
    at = place = 0
    star = resume = -1
    while at < len(text):
        if place < len(pattern) and pattern[place] == "*":
            star, resume = place, at
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", text[at]):
            at += 1
            place += 1
        elif star >= 0:
            resume += 1
            at, place = resume, star + 1
        else:
            return False
    return not pattern[place:].strip("*")


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    """Number and text of each line that says something."""
    _check_size(content)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise SignersError(f"line {content.count(10, 0, error.start) + 1} is not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t")
        if any(not each.isprintable() for each in line.replace("\t", "")):
            raise SignersError(f"line {number} has a control character (Windows line endings, perhaps)")
        if line and not line.startswith("#"):
            yield number, line


def _check_size(content: bytes) -> None:
    if len(content) > MAX_BYTES:
        raise SignersError(f"it is larger than {MAX_BYTES >> 10} KiB")


def _signer(number: int, line: str, local_time: LocalTime) -> Signer:
    try:
        principals, rest = _principals(line)
        options, rest = _options(rest)
        signer = Signer(number, principals, _identity(principals), _key(rest))
        return _with_options(signer, options, local_time)
    except (SignersError, SignatureError) as error:
        raise SignersError(f"line {number}: {error}") from None


def _principals(line: str) -> tuple[str, str]:
    """The first field, and what is behind it."""
    if line.startswith('"'):
        principals, quote, rest = line[1:].partition('"')
        if not quote:
            raise SignersError("a quotation mark is missing behind the principals")
    else:
        principals, _, rest = line.replace("\t", " ").partition(" ")
        rest = line[len(principals) :]
    if '"' in principals or rest[:1] not in (" ", "\t"):
        raise SignersError("the principals are one word, or between quotation marks")
    return principals, rest.strip(" \t")


def _identity(principals: str) -> str:
    """A name that the principals take. Raises SignersError when there is none: the line would allow nobody."""
    for pattern in principals.split(","):
        if pattern and not pattern.startswith("!"):
            for star in ("", "x", "signer"):
                name = pattern.replace("*", star).replace("?", "x")
                if name and matches(name, principals):
                    return name
    raise SignersError(f"no name is found that the principals '{principals[:80]}' take")


def _options(rest: str) -> tuple[list[tuple[str, str | None]], str]:
    """Names (in lower case) and values of the options, and what is behind them: the key."""
    word = rest.replace("\t", " ").partition(" ")[0]
    if _KIND.fullmatch(word) and word != _AUTHORITY:
        return [], rest
    options = []
    while True:
        found = _OPTION.match(rest)
        if found is None:
            raise SignersError(f"{rest[:40]!r} is neither an option nor a key")
        value = found["value"]
        options.append((found["name"].lower(), None if value is None else value.replace('\\"', '"')))
        rest = rest[found.end() :]
        if rest.startswith((" ", "\t")):
            return options, rest.strip(" \t")
        if not rest.startswith(","):
            raise SignersError(f"an option ends at {rest[:40]!r}; values are between quotation marks")
        rest = rest[1:]


def _with_options(signer: Signer, options: Sequence[tuple[str, str | None]], local_time: LocalTime) -> Signer:
    given: dict[str, Any] = {}
    for name, value in options:
        if name == _AUTHORITY:
            raise SignersError("certificate authorities are not supported; list the keys of the signers themselves")
        if value is None or name not in ("namespaces", "valid-after", "valid-before"):
            raise SignersError(f"the option '{name[:40]}' is not known, or has no value between quotation marks")
        field = name.replace("-", "_")
        if field in given:
            raise SignersError(f"the option '{name}' is there twice")
        given[field] = value if name == "namespaces" else _time(value, local_time)
    limited = signer._replace(**given)
    after, before = limited.valid_after, limited.valid_before
    if after is not None and before is not None and before <= after:
        raise SignersError("valid-before is not behind valid-after")
    return limited


def _key(rest: str) -> PublicKey:
    words = rest.split(maxsplit=2)
    if len(words) < 2:
        raise SignersError("there is no public key")
    key = read_key(decode_base64(words[1]))
    if key.kind != words[0]:
        raise SignersError(f"the key is of the kind {key.kind} and not {words[0][:60]}")
    return key


def _time(text: str, local_time: LocalTime) -> float:
    found = _TIME.fullmatch(text)
    if found is None:
        raise SignersError(f"{text[:40]!r} is not a time: write YYYYMMDD or YYYYMMDDHHMM[SS], with Z behind it for UTC")
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    days = (31, 29 if _is_leap(year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    is_date = year >= 1970 and 1 <= month <= 12 and 1 <= day <= days[month - 1]
    if not is_date or hour > 23 or max(minute, second) > 59:
        raise SignersError(f"{text[:40]!r} is not a time")
    try:
        seconds = (_utc if found[7] else local_time)(year, month, day, hour, minute, second)
    except (OverflowError, ValueError):
        raise SignersError(f"{text[:40]!r} is not a time that this host knows") from None
    if seconds <= 0:
        raise SignersError(f"{text[:40]!r} is before 1970")
    return seconds


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _utc(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    """Seconds since the epoch, by the civil calendar."""
    before = year - (month < 3)  # years that begin in March: the leap day is their last
    days = 365 * before + before // 4 - before // 100 + before // 400
    days += (153 * ((month + 9) % 12) + 2) // 5 + day - 719469
    return float(((days * 24 + hour) * 60 + minute) * 60 + second)
