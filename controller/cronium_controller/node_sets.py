"""Which names an expression stands for: `web[01-20]`, `web,db1`, `web!web03`, `@web&@eu`, `web*`.

The grammar and the arithmetic are ClusterShell's. It is loaded for expressions only, since it costs some 20 ms that a
plain name need not pay. Knows names, not hosts; errors are ValueErrors whose text the caller puts a place in front of.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

ALL: Final = "all"
"""The group of all hosts, unless somebody calls a host or group of theirs so."""
MAX_NODES: Final = 10_000
"""Names that one expression may stand for. ClusterShell expands in memory: 10⁸ names were gigabytes."""
_MAX_DIGITS: Final = 9
_IS_PLAIN: Final = re.compile(r"[^\[\]!&^@*?%]+")
_PIECES: Final = re.compile(r"((?:\[[^\]]*\]|[^,!&^\[])*)([,!&^]?)")


def expand(expression: str) -> list[str]:
    """Every name of an expression without groups. Raises ValueError for one that can't be read or is too large."""
    if _IS_PLAIN.fullmatch(expression) and "," not in expression:
        return [expression]
    _refuse_large(expression)
    return _evaluated(expression, None)


def pick(expression: str, names: Collection[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The names that an expression stands for, each once; a plain list keeps its order.

    Raises LookupError for a name that is neither in `names` nor a group, ValueError for what can't be read.
    """
    if set(re.sub(r"\[[^\[\]]*\]", "", expression)) & set("[]"):
        raise ValueError("a bracket without its other half")
    pieces = [(piece.strip(), operator) for piece, operator in _PIECES.findall(expression) if piece or operator]
    known = {ALL: tuple(names), **groups}
    if ALL in names:
        del known[ALL]
    if all(operator in ("", ",") and _IS_PLAIN.fullmatch(piece) for piece, operator in pieces):
        found = [name for piece, _ in pieces if piece for name in _named(piece, names, known)]
    else:
        _refuse_large(expression)
        for group in re.findall(r"@([^,!&^\s]+)", expression):
            if group not in known:
                raise LookupError(_unknown(group, names, known))
        # A group's bare name will do; ClusterShell wants an @ in front.
        marked = "".join(f"{'@' if piece in known and piece not in names else ''}{piece}{op}" for piece, op in pieces)
        found = _evaluated(marked, {group: ",".join(members) for group, members in known.items()}, names)
        for name in found:
            if name not in names:
                raise LookupError(_unknown(name, names, known))
    if not found:
        raise LookupError("it stands for no host at all")
    return list(dict.fromkeys(found))


def folded(names: Sequence[str]) -> str:
    """One expression for many names, as short as can be: web[01-20]; the names themselves where that can't be."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    if len(names) > 1 and all(_IS_PLAIN.fullmatch(name) and "," not in name for name in names):
        try:
            return str(NodeSet.fromlist(list(names)))
        except NodeSetException:
            pass
    return ",".join(names)


def groups_named(expression: str, groups: Collection[str]) -> list[str]:
    """Which of these groups an expression speaks of."""
    pieces = [piece.strip().removeprefix("@") for piece, _ in _PIECES.findall(expression)]
    return [piece for piece in pieces if piece in groups]


def nearest(word: str, words: Collection[str]) -> str:
    """What `word` may have been meant to be, as the end of a sentence; empty when nothing is near."""
    close = difflib.get_close_matches(word, words, 1, 0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def _named(piece: str, names: Collection[str], groups: Mapping[str, Sequence[str]]) -> Sequence[str]:
    if piece in names:
        return (piece,)
    if piece in groups:
        return groups[piece]
    raise LookupError(_unknown(piece, names, groups))


def _unknown(word: str, names: Collection[str], groups: Mapping[str, Any]) -> str:
    return f"no host or group {word!r:.80}{nearest(word, [*names, *groups])}"


def _evaluated(expression: str, groups: dict[str, str] | None, names: Collection[str] = ()) -> list[str]:
    from ClusterShell.NodeSet import NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolver, GroupSource

    # Ours alone: without a resolver it would read /etc/clustershell and run what it finds configured there.
    source = GroupSource("cronium", groups or {}, ",".join(names))
    try:
        nodes = NodeSet(expression, resolver=GroupResolver(default_source=source))
        return [str(node) for node in nodes]
    except NodeSetException as error:
        raise ValueError(f"not a node set: {error}") from None


def _refuse_large(expression: str) -> None:
    """Counts before ClusterShell does, which expands while it reads."""
    total = 1
    for inside in re.findall(r"\[([^\]]*)\]", expression):
        count = 0
        for part in inside.split(","):
            first, dash, last = part.partition("/")[0].partition("-")
            if max(len(first), len(last)) > _MAX_DIGITS:
                raise ValueError(f"a number of more than {_MAX_DIGITS} digits")
            is_range = dash and first.isdecimal() and last.isdecimal()
            count += max(1, int(last) - int(first) + 1) if is_range else 1
        total *= count
    if total > MAX_NODES:
        raise ValueError(f"it stands for more than {MAX_NODES} names")
