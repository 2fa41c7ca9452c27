"""The list of contents of an installed runner, as its controller reads it: which files are not as they were built.

The runner's own reader is `cronium_runner.bundle`, which documents the format.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

FILE: Final = "contents"
MAGIC: Final = "cronium-runner bundle 1"
_IDENTITY: Final = r"[^ \n]+ [0-9a-f]{12} [^ \n]+ [^ \n]+"
_ENTRY: Final = (
    r"(?:[fp] [0-7]{1,4} [0-9]{1,12} [^ \n]+|l [^ \n]+ [^ \n]+|s [0-9a-f]{64} [^ \n]+"
    r"|a [0-9]{1,12} [0-9a-f]{64} _internal/[^ \n]*\.so[^ \n]*)"
)
_LIST: Final = re.compile(f"{MAGIC}\n{_IDENTITY}\n(?:{_ENTRY}\n)+", re.ASCII)


class Listed(NamedTuple):
    """What a list of contents says: a build, its files and links by path.

    `files` has the SHA-256 of each file as it was built; None in a list that 0.1.0 wrote. `links` has where each leads.
    `adopted` has the SHA-256 of libraries that the owner of the form has exchanged since.
    """

    version: str
    build_id: str
    files: dict[str, str | None]
    links: dict[str, str]
    adopted: dict[str, str]


def find(data: bytes) -> str | None:
    """The first whole list of contents in a binary that carries it as text; None when it has none."""
    text = data.decode("latin-1")
    start = text.find(f"{MAGIC}\n")
    while start >= 0:
        found = _LIST.match(text, start)
        if found is not None:
            return found.group()
        start = text.find(f"{MAGIC}\n", start + 1)
    return None


def parse(text: str) -> Listed:
    """Reads a list. Raises ValueError when it is no such list, or has a path twice."""
    if _LIST.fullmatch(text) is None:
        raise ValueError("not a list of contents")
    _, identity, *lines = text.splitlines()
    version, build_id, _, _ = identity.split(" ")
    entries = [line.split(" ") for line in lines]
    paths = [words[-1] for words in entries if words[0] in ("f", "p")]
    digests = {words[2]: words[1] for words in entries if words[0] == "s"}
    links = {words[2]: words[1] for words in entries if words[0] == "l"}
    adopted = {words[3]: words[2] for words in entries if words[0] == "a"}
    files = {path: digests.get(path) for path in paths}
    if len(files) < len(paths) or files.keys() & links.keys() or (digests and digests.keys() != files.keys()):
        raise ValueError("a path is listed twice, or without its digest")
    if adopted.keys() - files.keys() or len(adopted) < sum(words[0] == "a" for words in entries):
        raise ValueError("an exchanged library is not listed, or listed twice")
    return Listed(version, build_id, files, links, adopted)


def as_built(text: str) -> str:
    """The list without what its owner has exchanged: what the build wrote."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("a "))


def has_adopted(text: str) -> bool:
    """Whether the list has libraries that its owner has exchanged."""
    return "\na " in text


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
    expected |= {words[3]: words[2] for words in lines if words[0] == "a" and len(words) == 4}
    if not listed or (expected and expected.keys() != listed.keys()):
        return FILE
    for path, size in listed.items():
        if expected and digests.get(path) != expected[path]:
            return path
        if not expected and str(sizes.get(path)) != size:
            return path
    return None
