"""Names that both ends must agree on: execution ids, stream numbers, environment variables, folders."""

import re
from collections.abc import Sequence
from typing import Final

EXECUTION_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
"""An execution id is also a file name and part of a shell word, so its alphabet is small."""

SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")

PAYLOAD_SUFFIXES: Final = (".tar.gz", ".tgz")
"""A file of such a name is a payload, never a script, whatever is in it."""

SIGNATURE: Final = "signature"
"""The key of a submission for its payload's signature, and what an agent says in HELLO that it knows."""
SCRIPT_ENDPOINT: Final = "scriptEndpoint"
"""The same for the endpoint that a script with `expose_api: true` sees, where it is to see another than its runner."""

STDOUT: Final = 1
STDERR: Final = 2
STREAM_NAMES: Final = {STDOUT: "stdout", STDERR: "stderr"}

INSTALL_ROOT: Final = ".local/lib/cronium-runner"
"""Below the account's home directory: one folder per installed version."""


def is_execution_id(text: str) -> bool:
    """Whether `text` may be used as an execution id."""
    return EXECUTION_ID.fullmatch(text) is not None


def invalid_id_sentence(text: str) -> str:
    """What to say of a text that is not an execution id."""
    return (
        f"{text[:80]!r} is not an execution id: use 1 to 64 letters, digits, '.', '_' or '-', "
        "not beginning with '.' or '-'"
    )


def execution_id_from(utc: Sequence[int], random: bytes) -> str:
    """A fresh id: readable in a listing, and never the same twice. `utc` begins with year to second (time.gmtime())."""
    year, month, day, hour, minute, second = utc[:6]
    return f"exec_{year:04d}{month:02d}{day:02d}_{hour:02d}{minute:02d}{second:02d}_{random.hex()}"


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return SHA256_HEX.fullmatch(text) is not None
