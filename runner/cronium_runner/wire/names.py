"""Names that both ends must agree on: execution ids, stream numbers, environment variables, folders."""

import re
from typing import Final

EXECUTION_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
"""An execution id is also a file name and part of a shell word, so its alphabet is small (promises.md)."""

SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")

STDOUT: Final = 1
STDERR: Final = 2
STREAM_NAMES: Final = {STDOUT: "stdout", STDERR: "stderr"}

INSTALL_ROOT: Final = ".local/lib/cronium-runner"
"""Below the account's home directory: one folder per installed version."""


def is_execution_id(text: str) -> bool:
    """Whether `text` may be used as an execution id."""
    return EXECUTION_ID.fullmatch(text) is not None


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return SHA256_HEX.fullmatch(text) is not None
