"""Secret values in a stream of bytes become `***`, also when they are split across reads, encoded, or quoted.

A stream filter and nothing else: it knows no files and no executions. It holds back the end of what it has seen while
that could be the beginning of a secret; `flush` lets it go. In which forms a secret is looked for, `secret_forms` says.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from . import secret_forms
from .output import Spool
from .secret_forms import Form
from .wire.results import StreamSummary

MASK: Final = b"***"


class Masker:
    """Replaces the given secrets. One for each stream."""

    def __init__(self, secrets: Iterable[Any], *, held: bytes = b"") -> None:
        self._secrets = list(secrets)
        self._search: _Search | None = None
        self._texts: list[list[bytes]] | None = None
        self.held = held
        """What was seen and not yet let go."""

    def __repr__(self) -> str:
        return f"<Masker of {len(self._secrets)} secrets, {len(self.held)} bytes held>"

    def feed(self, piece: bytes) -> bytes:
        """What can be let go after `piece`, secrets replaced."""
        return self._masked(self.held + piece if self.held else piece, is_end=False)

    def flush(self) -> bytes:
        """The rest, when nothing more will come."""
        return self._masked(self.held, is_end=True)

    def finds_in(self, text: bytes) -> bool:
        """Whether a text holds a secret in any form. Forms are made of secrets short enough to fit in it."""
        if self._texts is None:
            self._texts = [secret_forms.texts(secret) for secret in self._secrets]
        fitting = [index for index, own in enumerate(self._texts) if any(len(each) <= len(text) for each in own)]
        if any(each in text for index in fitting for each in self._texts[index]):
            return True
        if self._search is None and fitting and _last is not None and _last[0] == self._secrets:
            self._search = _last[1]  # the streams have made it
        search = self._search
        if search is None and fitting:
            search = _search_for([self._secrets[index] for index in fitting])
        return search is not None and bool(search.matches(text, search.present(text)))

    def _made(self) -> "_Search":
        if self._search is None:  # with the first output: a job that prints nothing does not pay
            self._search = _search_for(self._secrets)
        return self._search

    def _masked(self, seen: bytes, *, is_end: bool) -> bytes:
        search = self._made()
        parts = []
        present = search.present(seen)
        if present and (begin := search.masked_beginning(seen, present)) is not None:
            parts, seen = [begin[0]], begin[1]
            present = search.present(seen)
        tail = max(0, len(seen) - search.longest + 1)
        position, open_at = 0, -1
        for start, negative_end in search.matches(seen, present):
            if start < position:
                continue
            if start >= tail and not is_end:
                if open_at < position:
                    open_at = search.first_open(seen, max(position, tail))
                if open_at <= start:
                    break  # what begins there may be longer, or begin earlier, than this one
            parts += [seen[position:start], MASK]
            position = -negative_end
        let_go = len(seen)
        if not is_end:
            let_go = open_at if open_at >= position else search.first_open(seen, max(position, tail))
        parts.append(seen[position:let_go])
        self.held = seen[let_go:]
        return b"".join(parts)


class _Search:
    """Finds any of the forms in bytes."""

    def __init__(self, forms: list[Form]) -> None:
        self.longest = max((form.longest for form in forms), default=0)
        anchors: dict[bytes, list[tuple[Form, int]]] = defaultdict(list)
        self._beginnings: dict[bytes, list[Form]] = defaultdict(list)
        for form in forms:
            for anchor in form.anchors:
                anchors[anchor.needle].append((form, anchor.at))
            for beginning in form.beginnings(1):
                self._beginnings[beginning].append(form)
        self._places = {needle: _Place(needle, found) for needle, found in anchors.items()}
        heads = {beginning for form in forms for beginning in form.beginnings(3)}
        self._open = re.compile(_tree(heads) if heads else b"(?!)", re.DOTALL)

    def present(self, seen: bytes) -> list[bytes]:
        """The strings to search for that are there at all, which is seldom any."""
        return [needle for needle in self._places if needle in seen]

    def masked_beginning(self, seen: bytes, present: list[bytes]) -> tuple[bytes, bytes] | None:
        """The beginning, masked as far as that is certain, and the rest: where a text itself is all that is found."""
        literal = self._places[present[0]].only
        if any(self._places[needle].only != literal for needle in present[1:]):
            return None
        tail = len(seen) - self.longest + 1
        if literal is None or tail <= 0:
            return None
        last = seen.rfind(literal, 0, tail - 1 + len(literal))
        end = last + len(literal)
        count = seen.count(literal, 0, end)
        if last < 0 or any(seen.count(needle, 0, end) != count for needle in present):
            return None
        return seen[:end].replace(literal, MASK), seen[end:]

    def matches(self, seen: bytes, present: list[bytes]) -> list[tuple[int, int]]:
        """Where forms begin, and the negative of where they end, sorted: at one place the longest comes first."""
        found: list[tuple[int, int]] = []
        for needle in present:
            place = self._places[needle]
            at = seen.find(needle)
            while at >= 0:
                place.look(seen, at, found)
                at = seen.find(needle, at + 1)
        found.sort()
        return found

    def first_open(self, seen: bytes, position: int) -> int:
        """Where from `position` on the first form begins that is not complete at the end; the end if none does."""
        for found in self._open.finditer(seen, position):
            for at in range(found.start(), found.end()):
                forms = self._beginnings.get(seen[at : at + 1], ())
                if any(form.may_go_on(seen, at) for form in forms):
                    return at
        return len(seen)


_last: "tuple[list[Any], _Search] | None" = None
"""What was made last: both streams of an execution look for the same."""


def _search_for(secrets: list[Any]) -> _Search:
    global _last
    if _last is None or _last[0] != secrets:
        _last = list(secrets), _Search(secret_forms.forms(secrets))
    return _last[1]


class _Place:
    """What may be where one needle was found."""

    def __init__(self, needle: bytes, forms: list[tuple[Form, int]]) -> None:
        self._forms = self._others = forms
        self._literal: bytes | None = None
        self._before = self._after = b""
        texts = {form.literal for form, _ in forms} - {None}
        text = next(iter(texts)) if len(texts) == 1 else None
        if text is not None and needle in text:
            # Most of what is found is a text as it is. Then those forms of it that may look just like it need no look.
            self._literal = text
            self._before, self._after = text[: text.index(needle)], text[text.index(needle) :]
            self._others = [(form, index) for form, index in forms if form.literal is None]
        self.only = self._literal if not self._others and not _overlaps_itself(self._literal or b"") else None
        """The text, where the needle is in no form that can't look just like it."""

    def look(self, seen: bytes, at: int, found: list[tuple[int, int]]) -> None:
        """Adds what is there to `found`."""
        others = self._forms
        if self._literal is not None and seen.startswith(self._after, at):
            start = at - len(self._before)
            if start >= 0 and (not self._before or seen.startswith(self._before, start)):
                found.append((start, -start - len(self._literal)))
                others = self._others
        for form, index in others:
            match = form.find(seen, at, index)
            if match is not None:
                found.append((match[0], -match[1]))


def _overlaps_itself(text: bytes) -> bool:
    return any(text.endswith(text[:size]) for size in range(1, len(text)))


def _tree(words: set[bytes]) -> bytes:
    """An expression for any of the words, and for the end of what is searched amid a word."""
    if b"" in words:
        return b""  # the shorter word says it all
    longer: dict[int, set[bytes]] = defaultdict(set)
    for word in words:
        longer[word[0]].add(word[1:])
    branches = [re.escape(bytes([first])) + _tree(rest) for first, rest in sorted(longer.items())]
    return b"(?:" + b"|".join([*branches, rb"\Z"]) + b")"


class MaskedSpool:
    """A spool that secrets do not reach."""

    def __init__(self, spool: Spool, masker: Masker) -> None:
        self._spool = spool
        self._masker = masker

    @property
    def error(self) -> OSError | None:
        """What the disk refused."""
        return self._spool.error

    def write(self, piece: bytes) -> None:
        """Adds a piece, masked."""
        self._spool.write(self._masker.feed(piece))

    def masking(self, secrets: Iterable[Any]) -> "MaskedSpool":
        """The same spool, masking these from here on: for a script that has given a secret a new value."""
        return MaskedSpool(self._spool, Masker(secrets, held=self._masker.held))

    def close(self) -> StreamSummary:
        """Makes what was kept durable and says what it is."""
        if held := self._masker.flush():  # an empty stream is no file
            self._spool.write(held)
        return self._spool.close()


def masked(spool: Spool | MaskedSpool, secrets: Iterable[Any]) -> MaskedSpool:
    """The spool, masking these from here on."""
    return spool.masking(secrets) if isinstance(spool, MaskedSpool) else MaskedSpool(spool, Masker(secrets))
