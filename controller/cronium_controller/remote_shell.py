"""The text that is sent to a host for a raw command: folder, variables and virtual environment put in front of it.

Pure text. The command itself is always read by the account's login shell, as with `ssh host command`. What we put in
front is POSIX sh: written directly where the login shell is known to read that, else through `sh -c`, quoted so that
fish and csh pass it on unchanged. Nothing here is secret-proof: a command line is seen by everybody on the host.
"""

import re
import shlex
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Final

from .errors import ControllerError

Folder = str | PathLike[str]
Variables = Mapping[str, object]
"""Values that are not text are written as `str` writes them; None leaves a variable as it is."""

COMMAND_ID: Final = "CRONIUM_COMMAND_ID"
"""Marks every process of a command in its environment, also those that left its session, so that they can be ended."""
POSIX_SHELLS: Final = ("sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "busybox")
_KILLING_SECONDS: Final = 2
"""For SIGKILL to be seen: only a process within a system call that can't be interrupted takes longer."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ODD: Final = "\\'!\n\r"
"""What fish (backslashes) or csh (the others) change within single quotes."""
_ESCAPED: Final = str.maketrans({character: f"\\0{ord(character):03o}" for character in _ODD})


_HOME: Final = re.compile(r"~(?:[A-Za-z_][A-Za-z0-9_.-]*)?(?:/|\Z)", re.ASCII)
_SPECIAL: Final = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\}|[$`\"\\]", re.ASCII)
"""What double quotes leave its meaning: variables, which keep it, and the characters that must lose it."""


def folder(given: Folder | None) -> str | None:
    """A folder as text."""
    return None if given is None else fspath(given)


def variables(given: Variables | None) -> dict[str, str]:
    """Variables as text."""
    return {name: _text(value) for name, value in (given or {}).items() if value is not None}


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return fspath(value) if isinstance(value, PathLike) else str(value)


def check(command: str, cwd: str | None, env: Mapping[str, str] | None) -> None:
    """Raises ControllerError for what no shell could be told. A NUL would end the whole connection."""
    if not command.strip():
        raise ControllerError("host.config", "Command cannot be empty")
    for name, value in (env or {}).items():
        if not _VARIABLE.fullmatch(name):
            raise ControllerError("host.config", f"{name!r:.60} is not a variable's name; use letters, digits and '_'")
        if "\0" in value:
            raise ControllerError("host.config", f"variable {name} has a NUL byte; remove it")
    if "\0" in command or "\0" in (cwd or ""):
        raise ControllerError("host.config", "a command cannot contain a NUL byte; remove it")


def prepared(
    cwd: str | None,
    venv: str | None,
    env: Mapping[str, str] | None,
    command_id: str | None,
    *,
    expands: bool = False,
    mark: str = "",
) -> str:
    """sh for what comes before a command: `cd`, then the virtual environment, then the variables; exit status 1 if not.

    A leading `~/` in a path means the home directory. `venv` is the script, or the line `source SCRIPT`. A command with
    an id has an empty standard input. With `expands` all of them are read as `expanded` says. `mark` stands behind the
    sentence that is said where there is no virtual environment.
    """
    word = expanded if expands else path
    # Nothing to read: said here, it spares a packet that tells the server so, a twentieth of a short command.
    # The number is the session's, or one in it, for `ending`.
    steps = [] if command_id is None else [f"export {COMMAND_ID}={command_id}.$$", "exec </dev/null"]
    if cwd:
        steps.append(f"CDPATH= cd -- {word(cwd)} || exit 1")
    if venv:
        script = venv_script(venv)
        said = shlex.quote(f"cannot read {script}{mark}")
        steps.append(f"test -r {word(script)} || {{ echo {said} >&2; exit 1; }}")
        steps.append(f". {word(script)}")
    if expands:  # some shells expand no `~` in an argument of export
        steps += [f"{name}={expanded(value)}; export {name}" for name, value in (env or {}).items()]
    else:
        steps += [f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return "; ".join(steps)


def venv_script(venv: str) -> str:
    """The script that `source SCRIPT`, or SCRIPT alone, names."""
    return venv.removeprefix("source ").removeprefix(". ").strip()


def path(text: str) -> str:
    """A path as a word of sh, its leading `~` still meaning a home directory."""
    if text == "~":
        return "~"
    if text.startswith("~/"):
        return "~/" + shlex.quote(text[2:])
    if text.startswith("-") or "/" not in text:  # never an option, never searched for on PATH
        text = "./" + text
    return shlex.quote(text)


def expanded(text: str) -> str:
    """A word of sh in which `$NAME`, `${NAME}` and a leading `~` or `~user` mean what they do to a shell there.

    Nothing else does: no command substitution, no pattern, no other form of `${…}`; it stays one word.
    """
    home = _HOME.match(text)
    before = "" if home is None else home.group()
    rest = text[len(before) :]
    quoted = _SPECIAL.sub(lambda found: found.group() if len(found.group()) > 1 else f"\\{found.group()}", rest)
    return f'{before}"{quoted}"' if rest or not before else before


def composed(command: str, before: str, *, is_posix: bool) -> str:
    """The whole text: `before` in sh, then the command in the login shell."""
    if is_posix:
        return f"{before}; {command}" if before else command
    if not before:
        return command
    return in_sh(f'{before}; exec "${{SHELL:-sh}}" -c "$1"', command)


def in_sh(script: str, *words: str) -> str:
    """A command that means the same in every login shell: sh with this script, and `words` as $1 and so on."""
    if not any(character in text for text in (script, *words) for character in _ODD):
        return " ".join(["sh -c", f"'{script}'", *(["sh", *(f"'{word}'" for word in words)] if words else [])])
    # Single quotes hold everything but these characters in every shell; printf puts them back. The x keeps final
    # newlines, which a substitution would drop.
    numbers = range(1, len(words) + 2)
    loads = "; ".join(f'v{n}=$(printf %bx "${n}"); v{n}=${{v{n}%x}}' for n in numbers)
    given = " ".join(f'"$v{n}"' for n in numbers[1:])
    quoted = [f"'{text.translate(_ESCAPED)}'" for text in (script, *words)]
    return " ".join(["sh -c", f"'{loads}; set -- {given}; eval \"$v1\"'", "sh", *quoted])


def ending(command_id: str, grace_seconds: int, *, tree: bool = False) -> str:
    """sh that ends the processes marked with this id: SIGTERM, then SIGKILL, and 1 when some are left.

    What the command has put into the background goes on, as after `ssh`: processes in another session, those that
    ignore SIGHUP and hold none of the command's streams, and what these have started. With `tree` all of them end.

    Looks at environments, which a process can't shed by leaving its session, and at command lines, since a shell's own
    environment shows only what it was started with. Linux only, as the runner is. Lower process ids are signalled
    first: parents before children, unless the numbers have wrapped, so that no shell is left to complain of a child
    that was killed.
    """
    # The brackets keep this script and its grep from finding themselves.
    mark = f"{COMMAND_ID}=[{command_id[0]}]{command_id[1:]}"
    spare = "" if tree else _SPARE.replace("MARK", mark)
    # By the clock, in hundredths of a second since the host started: a round takes long where there is much to look at.
    return (
        "now() { read -r up rest < /proc/uptime; now=${up%.*}${up#*.}; }; "
        f"marked() {{ grep -l {mark} $1 2>/dev/null | cut -d/ -f3 | sort -un; }}; "
        'found() { pids=$(marked "/proc/[0-9]*/environ /proc/[0-9]*/cmdline")'
        f"{'; spared' if spare else ''}; }}; {spare}"
        'found; test -z "$pids" && exit 0; kill -TERM $pids 2>/dev/null; kill -CONT $pids 2>/dev/null; '
        f"now; ends=$((now+{grace_seconds * 100})); "
        'while now; test $now -lt $ends; do found; test -z "$pids" && exit 0; sleep 0.05; done; '
        f"now; ends=$((now+{_KILLING_SECONDS * 100})); "
        'while found; test -n "$pids"; do test $now -lt $ends || exit 1; kill -KILL $pids 2>/dev/null; '
        "sleep 0.05; now; done; exit 0"
    )


# What is found at the start and then kept, as the shells that tell it end: the shells that read the command (`shells`:
# their command lines have the mark), its sessions, and the pipes and sockets that it was given. `spared` takes out of
# `pids` what goes on. A process that reads the command itself never does.
_SPARE: Final = (
    "stat() { read -r stat < /proc/$1/stat || return 1; set -- ${stat##*) }; parent=$2 session=$4; } 2>/dev/null; "
    "stream() { stream=$(readlink $1); case $stream in pipe:*|socket:*) ;; *) return 1;; esac; }; "
    'shells=$(marked "/proc/[0-9]*/cmdline"); '
    'first=$(grep -aho "MARK[.][0-9]*" /proc/[0-9]*/environ 2>/dev/null | cut -d. -f2 | sort -un); '
    'sessions=" $(echo $first) " streams=" "; '
    'for p in $shells $first; do stat $p && sessions="$sessions$session "; '
    'for f in /proc/$p/fd/1 /proc/$p/fd/2; do stream $f 2>/dev/null && streams="$streams$stream "; done; done; '
    "goes_on() { "
    'case "$sessions" in *" $session "*) ;; *) return 0;; esac; '
    'case "$sessions" in *" $1 "*) return 1;; esac; '
    "ignored=; while read -r key value; do case $key in SigIgn:) ignored=$value; break;; esac; done < /proc/$1/status; "
    "case $ignored in *[13579bdf]) ;; *) return 1;; esac; "
    "for f in /proc/$1/fd/*; do stream $f || continue; "
    'case "$streams" in " ") case $f in */1|*/2) return 1;; esac;; *" $stream "*) return 1;; esac; done; '
    "return 0; } 2>/dev/null; "
    "spared() { "
    'spare=" "; left=; for p in $pids; do stat $p || continue; '
    'case "$spare" in *" $parent "*) spare="$spare$p "; continue;; esac; '
    'if goes_on $p; then spare="$spare$p "; else left="$left $p"; fi; done; '
    'more=1; while test -n "$more"; do more=; pids=$left left=; for p in $pids; do stat $p || continue; '
    'case "$spare" in *" $parent "*) spare="$spare$p " more=1;; *) left="$left $p";; esac; done; done; '
    "pids=${left# }; }; "
)


def log_made(log_file: str | None, *, expands: bool = False) -> str:
    """sh that makes a log file's folder and the file, and ends with 1 when that can't be."""
    if log_file is None:
        return ""
    log = expanded(log_file) if expands else path(log_file)
    return f'mkdir -p -- "$(dirname -- {log})" || exit 1; : >> {log} || exit 1; '


def in_background(command: str, log_file: str | None, *, expands: bool = False) -> str:
    """sh that starts a command on its own, everything that it prints in one file, and says its process id.

    A compound command is one word to the login shell, so all of it goes on and all of it is logged.
    """
    log = "/dev/null" if log_file is None else expanded(log_file) if expands else path(log_file)
    return (
        f"{log_made(log_file, expands=expands)}unset {COMMAND_ID}; "
        f'nohup "${{SHELL:-sh}}" -c {shlex.quote(command)} > {log} 2>&1 < /dev/null & echo $!'
    )
