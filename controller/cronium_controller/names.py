"""Hosts by name: names, groups and sets of the hosts file, else addresses as `--host` takes them."""

import os
import re
from typing import Final

from . import inventory, node_sets
from .errors import ControllerError
from .hosts import BadTarget, Host, parse_host
from .inventory import Inventory

_EXPRESSION: Final = re.compile(r"@|[^\[]*[\[,!&^*?]")
"""What begins like an expression of `node_sets`, and is no `user@host` or `[IPv6]:port`."""


class Names:
    """Reads the hosts file when a name is first asked for, and again when it has changed."""

    def __init__(self) -> None:
        self._read: tuple[object, Inventory | None] | None = None

    def one(self, host: str) -> Host:
        """The host of a name. Raises ControllerError for a malformed row, and for what stands for several."""
        found = self.each(host)
        if len(found) != 1:
            sentence = f"{host!r:.80} stands for {len(found)} hosts; name one, or use run_many"
            raise ControllerError("hosts.not_found", sentence)
        if isinstance(found[0], BadTarget):
            raise found[0].error
        return found[0]

    def each(self, text: str) -> list[Host | BadTarget]:
        """The hosts that a text stands for; a malformed row is one of them. Raises ControllerError."""
        known = self._inventory(text)
        if known is not None and (text in known.entries or text in known.groups or text == node_sets.ALL):
            return known.select_each([text])
        if _EXPRESSION.match(text) and not text.startswith("["):
            return (known or inventory.load()).select_each([text])
        return [parse_host(text)]

    def _inventory(self, text: str) -> Inventory | None:
        path = inventory.find()
        if path is None:
            return None
        status = path.stat()
        state = (os.path.abspath(path), status.st_mtime_ns, status.st_size, status.st_ino)
        if self._read is None or self._read[0] != state:
            try:
                self._read = state, inventory.load(keeps_bad_rows=True)
            except ControllerError:
                return inventory.load_for([text])  # or raises the same
        return self._read[1]
