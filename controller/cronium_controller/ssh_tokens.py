"""Tokens of OpenSSH's configuration (`%h`, `%r`, …) and what they stand for; ssh_config(5), TOKENS."""

import functools
import hashlib
import os
import pwd
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .errors import ControllerError
from .ssh_lines import home

_TOKEN: Final = re.compile(r"%(.?)", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What each letter stands for. `name` is the host as it was asked for, which errors name."""

    values: Mapping[str, str]
    name: str

    @classmethod
    def of_connection(cls, name: str, host: str, port: str, user: str, alias: str | None = None) -> "Tokens":
        """All tokens that a connection has."""
        here = socket.gethostname()
        values = {
            "L": here.partition(".")[0], "d": home(), "h": host, "i": str(os.getuid()),
            "k": alias or name, "l": here, "n": name, "p": port, "r": user, "u": local_user(),
        }  # fmt: skip
        return cls(values, name)

    def only(self, letters: str) -> "Tokens":
        """Those of the letters alone, for a keyword that has no others."""
        return Tokens({letter: self.values[letter] for letter in letters}, self.name)

    def replaced(self, text: str) -> str:
        """Text with tokens replaced. Raises ControllerError for one that isn't among them."""
        return _TOKEN.sub(lambda matched: self._value(matched[1], text), text) if "%" in text else text

    def _value(self, letter: str, text: str) -> str:
        if letter == "%":
            return "%"
        if letter == "C" and "l" in self.values:
            whole = "".join(self.values[part] for part in "lhpr")
            return hashlib.sha1(whole.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
        if letter not in self.values:
            raise ControllerError(
                "host.config",
                f"the SSH configuration has the token %{letter} in {text!r}, which means nothing there; correct it",
                host=self.name,
            )
        return self.values[letter]

    def replaced_all(self, text: str) -> str:
        """Text with tokens and `${VARIABLES}` replaced. Raises ControllerError also for a variable that is not set."""
        text = self.replaced(text)
        return _VARIABLE.sub(lambda matched: self._variable(matched[1]), text) if "${" in text else text

    def _variable(self, variable: str) -> str:
        value = os.environ.get(variable)
        if value is None:
            raise ControllerError(
                "host.config",
                f"the SSH configuration uses the environment variable {variable}, which is not set; set it",
                host=self.name,
            )
        return value


@functools.lru_cache(maxsize=4)
def _user_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in some containers; ssh itself refuses to work there
        return os.environ.get("LOGNAME") or os.environ.get("USER") or str(uid)


def local_user() -> str:
    """The name of our own account here."""
    return _user_of(os.getuid())
