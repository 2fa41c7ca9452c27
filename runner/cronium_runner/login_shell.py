"""Keeps the helpers within reach of a script that is read by a login shell, whose profiles may set PATH anew.

No hook runs between the profiles and the script, so the shell is given a command of ours to read first: it puts the
variables back, then reads the script into the same shell, which keeps the functions and settings of the profiles.
`$0`, the arguments, BASH_SOURCE, line numbers and the exit status are those of a script started directly. `return`
outside of a function ends the script instead of failing, and `$-` has a `c` in it. Pure; nothing is started here.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Final

_SHELLS: Final = frozenset(("ash", "bash", "dash", "ksh", "ksh93", "mksh", "sh", "zsh"))
"""Those that read profiles for `-l`, and whose command may follow in one more word."""
_OWN_COMMAND: Final = "cs"
"""Options after which the shell reads no script file: its command is in the next word, or on standard input."""
_SPLIT: Final = ("-S", "--split-string=")
"""Options of env, which have several words in one."""


def with_helpers(command: Sequence[str], paths: Mapping[str, str]) -> list[str]:
    """`command`, whose last word is the script, so that `paths` hold within the script also when it is a login shell's.

    `paths` are variables and the folder that each begins with. Any other command is returned as it is.
    """
    words = list(command)
    position = _behind_options(words[:-1])
    if position is None:
        return words
    script_words = words[position:]
    if script_words[0] in ("-", "--"):
        del script_words[0]
    if "/" not in script_words[0]:  # the shell's own search for a file of that name differs from a command's
        return words
    return [*words[:position], "-c", _command(paths), *script_words]


def _behind_options(words: list[str]) -> int | None:
    """The position behind the options of the login shell among `words`; None when there is no login shell."""
    for position, word in enumerate(words):
        if os.path.basename(word) in _SHELLS:
            return _end_of_options(words, position + 1)
        if word.startswith(_SPLIT):
            string = word.removeprefix(_SPLIT[0]).removeprefix(_SPLIT[1])
            if not string:  # in the next word
                position += 1
                string = " ".join(words[position : position + 1])
            parts = string.split()
            shells = [at for at, part in enumerate(parts) if os.path.basename(part) in _SHELLS]
            is_last = bool(shells) and _end_of_options(parts, shells[0] + 1) == len(parts)
            return position + 1 if is_last else None
    return None


def _end_of_options(words: list[str], position: int) -> int | None:
    is_login = False
    while position < len(words):
        word = words[position]
        if len(word) < 2 or word[0] not in "-+" or word == "--":
            break
        is_short = word[1] != "-"
        if is_short and any(letter in word for letter in _OWN_COMMAND):
            return None
        is_login = is_login or word == "--login" or (is_short and word[0] == "-" and "l" in word)
        position += 2 if is_short and word[-1] in "oO" else 1
    return position if is_login and position <= len(words) else None


def _command(paths: Mapping[str, str]) -> str:
    import shlex  # of login shells only

    steps = []
    for name, folder in paths.items():
        quoted = shlex.quote(folder)
        steps.append(
            f"case ${{{name}-}}: in {quoted}:*) ;; *) {name}={quoted}${{{name}:+:${name}}}; export {name};; esac; "
        )
    return f'{"".join(steps)}. "$0"'
