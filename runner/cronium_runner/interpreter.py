"""Which program starts a script: names and aliases, what a file's first line or ending says, and where it is
on PATH.

Decides and looks; starts nothing. The script's own PATH counts, not the runner's, and what is missing is said
in one sentence, with the exit status that a shell would give (126 or 127).
"""

import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from .archive import shown
from .errors import InterpreterNotFoundError, ManifestError, NotExecutableError

ALIASES: Final = {
    "bash": "bash",
    "sh": "sh",
    "shell": "sh",
    "python": "python",
    "python3": "python",
    "py": "python",
    "node": "node",
    "nodejs": "node",
    "js": "node",
    "javascript": "node",
    "ruby": "ruby",
    "perl": "perl",
    "php": "php",
    "deno": "deno",
    "pwsh": "pwsh",
}

# `.sh` means bash: such files are written in it more often than not, and it runs plain sh as well.
EXTENSIONS: Final = {
    ".sh": "bash",
    ".bash": "bash",
    ".py": "python",
    ".js": "node",
    ".mjs": "node",
    ".cjs": "node",
    ".rb": "ruby",
    ".pl": "perl",
    ".php": "php",
    ".ts": "deno",
    ".ps1": "pwsh",
}

# The programs of an interpreter in the order they are tried. `python` may be Python 2, Debian once named node
# nodejs.
_PROGRAMS: Final = {"python": ("python3", "python"), "node": ("node", "nodejs")}
# deno asks for each permission on a terminal that isn't there; a job has its user's rights, like in other
# languages.
_ARGUMENTS: Final = {"deno": ("run", "--allow-all")}
# Linux reads this much of a first line (BINPRM_BUF_SIZE); what is longer would not start by itself either.
_SHEBANG_BYTES: Final = 256
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_BLANKS: Final = " \t"
"""What separates words for the kernel; it knows no other white space."""

# Systems differ in which of these folders holds a program, so a first line that names one of them means the program.
_USUAL_FOLDERS: Final = ("/bin", "/usr/bin", "/usr/local/bin")
_SHELLS: Final = ("bash", "sh")


class ResolvedCommand(NamedTuple):
    """What to execute: an argument vector that ends with the script's absolute path, the script's arguments
    excluded.

    `kind` is the interpreter's canonical name (python and node get module paths in their environment), or
    "direct" when the script is executed itself, or "other".
    """

    argv: list[str]
    kind: str


def canonical(name: str) -> str | None:
    """The one name of an interpreter that is known under `name`, in any case; None when it isn't."""
    return ALIASES.get(name.lower())


def programs(name: str) -> tuple[str, ...]:
    """The programs that an interpreter's canonical name stands for, in the order they are tried."""
    return _PROGRAMS.get(name, (name,))


def known_names() -> str:
    """All names a manifest may use, for a message."""
    return ", ".join(ALIASES)


def resolve(
    interpreter: str | tuple[str, ...] | None, entrypoint: str, work_dir: str, path_env: str
) -> ResolvedCommand:
    """Find what runs `entrypoint`, a file below `work_dir`.

    `interpreter` is a canonical name, an argument vector to which the script is appended, or None: then the
    file's first line decides, else its ending, else it is executed itself. `path_env` is the PATH that the
    script will have. Raises InterpreterNotFoundError, NotExecutableError, or ManifestError when there is no
    such file in `work_dir`.
    """
    script = _script_path(entrypoint, work_dir)
    if isinstance(interpreter, tuple):
        program = _find((interpreter[0],), work_dir, path_env, f"the manifest's interpreter {shown(interpreter[0])}")
        return ResolvedCommand([program, *interpreter[1:], script], _language(interpreter))
    by_ending = EXTENSIONS.get(os.path.splitext(entrypoint)[1].lower())
    line = ""
    if interpreter is None or interpreter in _SHELLS:
        line = _first_line(entrypoint, script, is_shell=(interpreter or by_ending) in _SHELLS)
    if interpreter is not None:
        return _named(interpreter, entrypoint, script, work_dir, path_env)
    if line:
        return _by_first_line(line, by_ending, entrypoint, script, work_dir, path_env)
    if by_ending is not None:
        return _named(by_ending, entrypoint, script, work_dir, path_env)
    if not os.access(script, os.X_OK):
        raise NotExecutableError(
            f"{shown(entrypoint)} is not executable and nothing says what runs it; name an interpreter, "
            "begin it with a '#!' line, or make it executable"
        )
    return ResolvedCommand([script], "direct")


def _script_path(entrypoint: str, work_dir: str) -> str:
    parts = entrypoint.split("/")
    path = os.path.join(work_dir, *parts)
    try:
        is_file = stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        is_file = False
    if entrypoint.startswith("/") or ".." in parts or not is_file:
        raise ManifestError(
            "manifest.entrypoint",
            f"the entrypoint {shown(entrypoint)} is not a file of the payload; name one that is",
        )
    return path


def _named(name: str, entrypoint: str, script: str, work_dir: str, path_env: str) -> ResolvedCommand:
    program = _find(programs(name), work_dir, path_env, f"{name}, which {shown(entrypoint)} needs,")
    return ResolvedCommand([program, *_ARGUMENTS.get(name, ()), script], name)


def _by_first_line(
    line: str, by_ending: str | None, entrypoint: str, script: str, work_dir: str, path_env: str
) -> ResolvedCommand:
    """Start a script as the kernel would, which works also where it lacks the executable bit.

    A first line without options that names, at a usual place, what the file's ending stands for says no more than the
    ending does: then any program of that interpreter on PATH will do (`#!/usr/bin/env python` where only python3 is).
    """
    program, _, argument = line.replace("\t", " ").partition(" ")
    # The kernel passes the rest of the line as one argument.
    argument = line[len(program) :].strip(_BLANKS)
    arguments: tuple[str, ...] = (argument,) if argument else ()
    is_usual = os.path.dirname(program) in _USUAL_FOLDERS
    kind = _kind_of(program)
    if os.path.basename(program) == "env":
        kind = _language([program, argument])
        words = _env_words(argument)
        if words:  # else options and assignments, which are for env itself
            program, *rest = words
            arguments, is_usual, kind = tuple(rest), "/" not in program, _kind_of(program)
    wanted = f"{shown(program)}, which the first line of {shown(entrypoint)} names,"
    candidates: tuple[str, ...] = (program,)
    if is_usual and by_ending is not None and canonical(os.path.basename(program)) == by_ending:
        candidates += programs(by_ending)
        arguments = arguments or _ARGUMENTS.get(by_ending, ())
    elif any(blank in program for blank in _BLANKS):
        wanted += " as one word (with several words it is: #!/usr/bin/env -S …)"
    return ResolvedCommand([_find(candidates, work_dir, path_env, wanted), *arguments, script], kind)


def _env_words(argument: str) -> list[str]:
    """The command of `env COMMAND` or `env -S COMMAND ARGUMENT…`; none where it is env itself that must read it."""
    for option in ("-S", "--split-string=", "--split-string "):
        if argument.startswith(option):
            words = _split(argument.removeprefix(option))
            break
    else:
        words = [argument] if argument else []
    return [] if words and (words[0].startswith("-") or "=" in words[0]) else words


def _split(string: str) -> list[str]:
    if any(character in string for character in "\\$#"):
        return []  # escapes, variables and comments, which env has rules of its own for
    import shlex

    try:
        return shlex.split(string)
    except ValueError:
        return []  # an open quote: env says it better


def _first_line(entrypoint: str, script: str, *, is_shell: bool) -> str:
    """What follows `#!` in the script's first line; "" when there is none. Raises NotExecutableError.

    `is_shell`: a shell will read the file, so that a Windows line ending is a fault in any first line.
    """
    try:
        opened = os.open(script, os.O_RDONLY | os.O_CLOEXEC)
        try:
            start = os.read(opened, _SHEBANG_BYTES)
        finally:
            os.close(opened)
    except OSError as error:
        raise NotExecutableError(f"cannot read {shown(entrypoint)}: {error.strerror}") from None
    if start.startswith(_UTF_16):
        raise NotExecutableError(f"{shown(entrypoint)} is UTF-16 text, which no interpreter reads; save it as UTF-8")
    line, newline, _ = start.partition(b"\n")
    has_mark = line.startswith(b"#!")
    if line.endswith(b"\r") and (has_mark or is_shell):
        raise NotExecutableError(
            f"the first line of {shown(entrypoint)} ends in a Windows line ending (CRLF); save the file with LF"
        )
    if not has_mark:
        return ""
    if not newline and len(start) == _SHEBANG_BYTES:
        raise NotExecutableError(
            f"the first line of {shown(entrypoint)} is longer than the {_SHEBANG_BYTES - 1} bytes that Linux reads; "
            "shorten it, or name an interpreter"
        )
    return os.fsdecode(line[2:]).strip(_BLANKS)


def _language(words: Sequence[str]) -> str:
    """The kind of a command: its program's, else that of a program which it starts (`nice python3`, `env -S node`)."""
    kind = _kind_of(words[0])
    if kind != "other":
        return kind
    started = (part for word in words[1:] for part in word.split() if not part.startswith("-") and "=" not in part)
    return next((kind for kind in map(_kind_of, started) if kind != "other"), "other")


def _kind_of(program: str) -> str:
    """The canonical name for a program like /usr/bin/python3.11; "other" when it is none of ours."""
    name = os.path.basename(program).lower()
    return canonical(name) or canonical(name.rstrip("0123456789.-")) or "other"


def _find(programs: Sequence[str], work_dir: str, path_env: str, wanted: str) -> str:
    """The absolute path of the first of `programs` that is there; a name with a slash is relative to
    `work_dir`.
    """
    unusable = ""
    for program in programs:
        candidates = [os.path.join(work_dir, program)] if "/" in program else _on_path(program, path_env)
        for candidate in candidates:
            try:
                is_file = stat.S_ISREG(os.stat(candidate).st_mode)
            except (OSError, ValueError):
                continue
            if is_file and os.access(candidate, os.X_OK):
                return candidate
            unusable = unusable or candidate
    if unusable:
        raise NotExecutableError(f"{wanted} is at {unusable}, but that cannot be executed; check its permissions")
    raise InterpreterNotFoundError(f"{wanted} is not on this host; install it, or name another interpreter")


def _on_path(program: str, path_env: str) -> list[str]:
    # Relative and empty entries would mean the work directory, where the payload lies; shells search it, we
    # don't.
    return [f"{folder.removesuffix('/')}/{program}" for folder in path_env.split(":") if folder.startswith("/")]
