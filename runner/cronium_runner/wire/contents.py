"""The list of contents of an installed runner, as its controller reads it: which files are not as they were built.

The runner's own reader is `cronium_runner.bundle`, which documents the format.
"""

from collections.abc import Mapping
from typing import Final

FILE: Final = "contents"


def has_digests(contents: str) -> bool:
    """Whether the list holds a SHA-256 for each file; those that 0.1.0 wrote hold sizes only."""
    return "\ns " in contents


def damage(contents: str, digests: Mapping[str, str], sizes: Mapping[str, int]) -> str | None:
    """The path of the first listed file that is not as it was built; None when all are.

    `digests` and `sizes` (bytes) are what was found on the host, by path below the runner's folder; `sizes` counts for
    a list without digests. A list that can't be read is itself what is damaged.
    """
    lines = [line.split(" ") for line in contents.splitlines()[2:]]
    listed = {words[3]: words[2] for words in lines if words[0] in ("f", "p") and len(words) == 4}
    expected = {words[2]: words[1] for words in lines if words[0] == "s" and len(words) == 3}
    if not listed or (expected and expected.keys() != listed.keys()):
        return FILE
    for path, size in listed.items():
        if expected and digests.get(path) != expected[path]:
            return path
        if not expected and str(sizes.get(path)) != size:
            return path
    return None
