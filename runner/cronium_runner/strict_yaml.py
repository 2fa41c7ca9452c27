"""A small, safe part of YAML as a tree that remembers lines and the text as it was written.

Built from PyYAML's events without recursion and without its constructors: no aliases, anchors, tags, merge
keys or duplicate keys, and one document. So 400 bytes can't become gigabytes, and `no` stays "no" until
somebody who knows what it is for gives it a type. What a manifest means is `manifest`'s business.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .errors import ManifestError
from .wire import exactjson

# A manifest is a page; inputData may bring some more. Larger input has its own option.
MAX_BYTES: Final = 256 << 10
# Deeper than configuration gets, and far below where json.dumps (1000) would give up on inputData later.
MAX_DEPTH: Final = 64
# PyYAML needs about 20 µs for a node, so this is 0.3 s at worst; measured, as are all of test_manifest's EXPENSIVE.
MAX_NODES: Final = 15_000
# A line that means one thing only, in YAML 1.1 as in 1.2: `key: word`, `key: "words"`, a comment, nothing at all.
_PLAIN_LINE: Final = re.compile(
    r"""(?:([A-Za-z_][A-Za-z0-9_]{0,99}): (?:([A-Za-z0-9_/.][A-Za-z0-9_/.-]*)|"([ !#-\[\]-~]*)")|\#[ -~]*|)\n"""
)
# Numbers longer than this are a mistake; CPython itself refuses to convert above 4300 digits.
MAX_DIGITS: Final = 400
_NUMBER: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?P<exponent>[eE][+-]?[0-9]+)?", re.ASCII
)


class Scalar(NamedTuple):
    """A single value: its text, unquoted and unescaped, and whether it was written without quotes."""

    text: str
    is_plain: bool
    line: int


class Sequence(NamedTuple):
    """A list of nodes."""

    items: "list[Node]"
    line: int


class Mapping(NamedTuple):
    """Keys, as text, to nodes. `key_lines` has the line of each key, from 1."""

    items: "dict[str, Node]"
    key_lines: dict[str, int]
    line: int


Node = Scalar | Sequence | Mapping


def parse(content: bytes, file: str) -> Node | None:
    """The tree of a document, None when it is empty. Raises ManifestError with `file:line:` in front."""
    if len(content) > MAX_BYTES:
        raise ManifestError(
            "manifest.too_large",
            f"{file}:1: larger than {MAX_BYTES >> 10} KiB; hand large input over separately",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError("manifest.not_yaml", f"{file}:{line}: not UTF-8; save the file as UTF-8") from None

    plain = _plain_lines(text)
    if plain is not None:
        return plain
    import yaml  # 17 ms of a host's first job, and a plain script's manifest does without

    try:
        return _Builder(file).build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = error.problem or error.context or "cannot be parsed"
        raise ManifestError("manifest.not_yaml", f"{file}:{line}: not valid YAML: {reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ManifestError(
            "manifest.not_yaml", f"{file}:{line}: not valid YAML: a control character; remove it"
        ) from None


def _plain_lines(text: str) -> Mapping | None:
    """The tree of a document of unmistakable lines; None where YAML's own rules are needed, and for every mistake."""
    found = Mapping({}, {}, 0)
    position = number = 0
    while position < len(text):
        number += 1
        line = _PLAIN_LINE.match(text, position)
        if line is None or line[1] in found.items or number > MAX_NODES // 2:
            return None
        position = line.end()
        if line[1] is None:
            continue
        word, words = line[2], line[3]
        found.items[line[1]] = Scalar(words if word is None else word, word is not None, number)
        found.key_lines[line[1]] = number
    return found._replace(line=min(found.key_lines.values())) if found.items else None


def load_parser() -> None:
    """Loads what a manifest needs that is more than plain lines, for processes that are forked later."""
    import yaml  # noqa: F401


class _Builder:
    """Puts nodes together from events; the open collections are a list, not the call stack."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._root: Node | None = None
        self._open: list[Sequence | Mapping] = []
        self._keys: list[Scalar | None] = []  # for each open collection: the key that waits for its value
        self._nodes = 0

    def build(self, events: Iterator[Any]) -> Node | None:
        documents = 0
        for event in events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    raise self._error("manifest.not_yaml", event, "a second document starts here; keep one")
            elif kind in ("SequenceEndEvent", "MappingEndEvent"):
                self._open.pop()
                self._keys.pop()
            elif kind in ("ScalarEvent", "SequenceStartEvent", "MappingStartEvent", "AliasEvent"):
                self._add(event, kind)
        return self._root

    def _add(self, event: Any, kind: str) -> None:
        line = event.start_mark.line + 1
        if event.anchor is not None:
            what = "an alias" if kind == "AliasEvent" else "an anchor"
            raise self._error("manifest.alias", event, f"{what} ({event.anchor!r:.60}); write the value out")
        if event.tag is not None:
            raise self._error("manifest.alias", event, f"a tag ({event.tag!r:.60}); write the plain value")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(
                "manifest.too_large", event, f"more than {MAX_NODES} values; hand large input over separately"
            )
        if kind == "ScalarEvent":
            self._attach(event, Scalar(self._text(event), event.style is None, line))
            return
        if len(self._open) >= MAX_DEPTH:
            raise self._error("manifest.too_large", event, f"nested more than {MAX_DEPTH} levels deep; flatten it")
        collection = Mapping({}, {}, line) if kind == "MappingStartEvent" else Sequence([], line)
        self._attach(event, collection)
        self._open.append(collection)
        self._keys.append(None)

    def _attach(self, event: Any, node: Node) -> None:
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        key = self._keys[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif key is not None:
            parent.items[key.text] = node
            self._keys[-1] = None
        elif not isinstance(node, Scalar):
            raise self._error("manifest.invalid", event, "a list or mapping as a key; a key is a single word")
        elif node.is_plain and node.text == "<<":
            raise self._error("manifest.alias", event, "a merge key ('<<'); write the keys out")
        elif node.text in parent.items:
            first = parent.key_lines[node.text]
            raise self._error(
                "manifest.duplicate_key",
                event,
                f"key {node.text!r:.60} again, first on line {first}; keep one",
            )
        else:
            parent.key_lines[node.text] = node.line
            self._keys[-1] = node

    def _text(self, event: Any) -> str:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self._error("manifest.not_yaml", event, "a lone surrogate escape, which no text has; remove it")
        return text

    def _error(self, code: str, event: Any, what: str) -> ManifestError:
        return ManifestError(code, f"{self._file}:{event.start_mark.line + 1}: {what}")


def number(scalar: Scalar) -> int | float | None:
    """The number that an unquoted scalar is in YAML 1.2's core schema, decimal only; None when it isn't one.

    Infinities and NaN stay text, as JSON, where these values end up, has none.
    """
    text = scalar.text
    if not scalar.is_plain or len(text) > MAX_DIGITS or text.strip("0123456789.eE+-"):
        return None
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits.isdigit():
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) != float("inf") else None


_WORDS: Final = {
    "": None,
    "~": None,
    **dict.fromkeys(("null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def value(node: Node) -> Any:
    """The node as JSON has it, scalars typed by YAML 1.2's core schema (so `no` and `1:30` stay text).

    Recursive, as MAX_DEPTH bounds it.
    """
    if isinstance(node, Mapping):
        return {key: value(item) for key, item in node.items.items()}
    if isinstance(node, Sequence):
        return [value(item) for item in node.items]
    if node.is_plain and node.text in _WORDS:
        return _WORDS[node.text]
    literal = _json_number(node)
    return node.text if literal is None else exactjson.number(literal)


def is_null(node: Node) -> bool:
    """Whether the node is nothing: an empty value, `~` or `null`, without quotes."""
    return isinstance(node, Scalar) and node.is_plain and node.text in _WORDS and _WORDS[node.text] is None


def _json_number(scalar: Scalar) -> str | None:
    """An unquoted number as JSON writes it, with every digit; None when the scalar isn't a number.

    JSON has no `+`, no zeros in front, and digits on both sides of a point.
    """
    found = _NUMBER.fullmatch(scalar.text) if scalar.is_plain and len(scalar.text) <= MAX_DIGITS else None
    if found is None or not (found["whole"] or found["part"]):
        return None
    whole = found["whole"].lstrip("0") or "0"
    part = "" if found["part"] is None else f".{found['part'] or '0'}"
    return f"{'-' if found['sign'] == '-' else ''}{whole}{part}{found['exponent'] or ''}"
