"""The rule of `safe_path` as POSIX sh: what a host's own shell checks before it executes a runner.

A runner can't tell whether it was exchanged, so the check comes before it, in the session that starts it: one `ls` for
all directories on the way. For dash, bash, busybox and zsh as sh. The text has no quote, backslash, `!` or newline in
it, so that csh and fish hand it on to sh unchanged within single quotes.

The path is resolved first (`cd -P`) and what was checked is what is used afterwards, so no link is followed later.
`tests/safe_path_cases.json` is the table of cases.
"""

from typing import Final

UNSAFE: Final = 94
"""Exit status of a check that failed."""
ABSENT: Final = 127
"""Exit status when there is no such directory: that of a shell which finds no program."""
WORD: Final = "cronium-unsafe:"
"""Begins the line on standard error that says what is wrong with which directory."""

# Whether group $1 is the account's primary group and has no other member; root is not counted.
_PRIVATE_GROUP: Final = (
    "private_group() { "
    "[ $1 = $(id -g) ] || return 1; own=$(id -u); name=$(id -un); found=1; "
    'while IFS=: read -r a b c d e; do if [ "$c" = 0 ] || [ "$c" = $own ]; then name="$name $a"; '
    'elif [ "$d" = $1 ]; then return 1; fi; done </etc/passwd; '
    'while IFS=: read -r a b c d; do if [ "$c" = $1 ]; then found=0; '
    'for member in $(echo "$d" | tr , " "); do case " $name " in *" $member "*) ;; *) return 1 ;; esac; done; '
    "fi; done </etc/group; return $found; }; "
)

# $1 is a directory that can be written by others: the account's own at or below .local becomes as it should be.
_TIGHTEN: Final = 'tighten() { case $1/ in */.local/*) [ -O "$1" ] && chmod g-w,o-w "$1" ;; *) return 1 ;; esac; }; '

_REFUSE: Final = f'refuse() {{ echo "{WORD} $1" >&2; exit {UNSAFE}; }}; '

# One line of `ls -ldn` for each of the positional parameters, the root first. Its pipe makes a process, so that `exit`
# ends the check alone.
_LOOK: Final = (
    "closed=; sticky=; "
    "while read -r mode links user group rest; do "
    'if [ -O "$1" ]; then is_own=1; elif [ "$user" = 0 ]; then is_own=; '
    'else refuse "$1 belongs to uid $user, who could exchange what is in it"; fi; '
    "case $mode$is_own in drwx------*1) is_closed=1 ;; *) is_closed= ;; esac; "
    'if [ -n "$sticky" ] && [ -z "$is_closed" ]; then '
    'refuse "$1 ($mode) is in a directory that every user may write"; fi; sticky=; '
    "case $mode in d????-??-*) ;; "
    'd????????[tT]*) if [ "$user" = 0 ]; then sticky=1; else refuse "$1 can be written by others ($mode)"; fi ;; '
    'd????w??-*) [ -n "$closed" ] || private_group $group || tighten "$1" '
    '|| refuse "$1 can be written by group $group ($mode): chmod g-w $1" ;; '
    'd*) tighten "$1" || refuse "$1 can be written by every user ($mode): chmod g-w,o-w $1" ;; '
    '*) refuse "$1 is not a directory ($mode)" ;; esac; '
    "closed=$closed$is_closed; shift; done; "
    '[ $# = 0 ] || refuse "$1 cannot be looked at"; '
)

CHECK: Final = (
    f"{_PRIVATE_GROUP}{_TIGHTEN}{_REFUSE}set -f; here=$PWD; set --; "
    'while [ -n "$here" ]; do set -- "$here" "$@"; here=${here%/*}; done; set -- / "$@"; '
    'LC_ALL=C ls -ldn -- "$@" | { '
    f"{_LOOK}}} || exit {UNSAFE}; "
)
"""Checks the working directory, which `cd -P` has made the real one, and what is above it; ends sh where it fails.

Changes the positional parameters and turns globbing off.
"""


def entering(directory: str) -> str:
    """sh that makes `directory`, quoted for sh, the working directory, by its real path; else it ends with ABSENT."""
    refuse = f"{{ echo {WORD} {directory} cannot be entered >&2; exit {ABSENT}; }}"
    return f"CDPATH= cd -P {directory} 2>/dev/null || {refuse}; "


_PARENT: Final = "case $there in */*) there=${there%/*} ;; *) there=. ;; esac"

FUNCTIONS: Final = (
    f"safe_path() ( {entering(chr(34) + '$1' + chr(34))}{CHECK}); "
    f'make_safe() {{ there=$1; until [ -d "${{there:-/}}" ]; do {_PARENT}; done; '
    'safe_path "${there:-/}" || return 1; said=$(umask 077; mkdir -p "$1" 2>&1) || '
    f'{{ echo "{WORD} $1 cannot be made: ${{said##*: }}" >&2; return 1; }}; safe_path "$1"; }}; '
)
"""sh that defines two functions. `safe_path DIRECTORY` has status 0 when it is safe. `make_safe DIRECTORY` makes what
is missing of it with mode 0700, in a safe place only."""
