"""The environment a script sees. Pure: mappings in, a dictionary out; nothing here reads or changes our own.

Order: the login's environment, then the manifest's, then the execution's, then the documented `CRONIUM_*` names and
the paths that make the helpers found. Whatever else of ours there was (PyInstaller's traces, the API token, where
the runner keeps its state) is taken out first.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would cost `version` the import of typing
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .install import HelperFolder

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For a login without PATH, which some ForceCommand set-ups have: what a Debian login has, since a PATH of only the
helper folder would hide every command from the script."""

_BOOTLOADER_MARK = "_PYI_ARCHIVE_FILE"
_BOOTLOADER_PREFIXES = ("_PYI_", "_MEIPASS", "PYINSTALLER_")
_OURS = "CRONIUM_"
_PUT_ASIDE = "CRONIUM_LOGIN_"
_LINKERS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT")


def login_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited` as it was before the launcher and PyInstaller's bootloader changed it.

    The launcher (build/launcher/start.c) puts what the login has for the dynamic linker aside, each under a name of
    ours, so that nothing of it is loaded into the runner. Scripts get it back.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(_BOOTLOADER_PREFIXES)}
    if _BOOTLOADER_MARK in inherited:
        for name in _LINKERS:
            original = kept.pop(f"{_PUT_ASIDE}{name}", None)
            if original is not None:
                kept[name] = original
    return kept


def for_scripts(environment: Mapping[str, str]) -> dict[str, str]:
    """What scripts inherit of `environment`, this process's: the login's, without the names that are ours."""
    return {name: value for name, value in login_environment(environment).items() if not name.startswith(_OURS)}


def script_environment(
    inherited: Mapping[str, str],
    *,
    manifest: Mapping[str, str],
    own: Mapping[str, str],
    helpers: HelperFolder,
    execution: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What any script of one execution gets as its environment; `for_interpreter` adds what one language needs.

    `inherited` is what `for_scripts` answers, `manifest` and `execution` are the additions that each asks for, and
    `own` are the documented CRONIUM_* names, which win. The helpers are found first, on PATH and as modules, whatever
    language a script starts. Python doesn't keep its output back, so that it is seen at once, and not lost when the
    script is ended.
    """
    made = {**inherited, **manifest, **(execution or {}), **own}
    made["PATH"] = f"{helpers.bin}:{made.get('PATH') or DEFAULT_PATH}"
    made["PYTHONPATH"] = _in_front(helpers.modules, made.get("PYTHONPATH"), ":")
    made["NODE_PATH"] = _in_front(helpers.node, made.get("NODE_PATH"), ":")
    made.setdefault("PYTHONUNBUFFERED", "1")
    return made


def for_interpreter(script: Mapping[str, str], language: str, helpers: HelperFolder) -> dict[str, str]:
    """`script` with what makes the helpers be there without an import when `language` is `python` or `node`.

    Not in programs that a script of another language starts: these import it.
    """
    made = dict(script)
    if language == "python":
        made["PYTHONPATH"] = helpers.python + script["PYTHONPATH"].removeprefix(helpers.modules)
    elif language == "node":
        preload = f"--require {_node_word(helpers.node + '/cronium.js')}"
        made["NODE_OPTIONS"] = _in_front(preload, made.get("NODE_OPTIONS"), " ")
    return made


def login_shell_paths(helpers: HelperFolder) -> dict[str, str]:
    """What a login shell's profiles may have set anew: variables, and the folder that each has to begin with."""
    return {"PATH": helpers.bin, "PYTHONPATH": helpers.modules, "NODE_PATH": helpers.node}


def _in_front(first: str, rest: str | None, separator: str) -> str:
    return f"{first}{separator}{rest}" if rest else first


def _node_word(word: str) -> str:
    """`word` as one word of NODE_OPTIONS, where spaces separate, and double quotes and backslashes quote."""
    if not any(character in word for character in ' "\\'):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
