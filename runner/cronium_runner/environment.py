"""The environment a script sees. Pure: mappings in, a dictionary out; nothing here reads or changes our own.

Order: the login's environment, then the manifest's, then the execution's, then the documented `CRONIUM_*` names and
the paths that make the helpers found. Whatever else of ours there was (PyInstaller's traces, the API token, where
the runner keeps its state) is taken out first. The one-file start imports this, so it imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would cost the one-file start-up the import of typing
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .install import HelperFolder

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For a login without PATH, which some ForceCommand set-ups have: what a Debian login has, since a PATH of only the
helper folder would hide every command from the script."""

_BOOTLOADER_MARK = "_PYI_ARCHIVE_FILE"
_BOOTLOADER_PREFIXES = ("_PYI_", "_MEIPASS", "PYINSTALLER_")
_OURS = "CRONIUM_"
_LIBRARY_PATH = "LD_LIBRARY_PATH"


def login_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited` as it was before PyInstaller's bootloader added to it.

    The bootloader puts its own folder in front of LD_LIBRARY_PATH and keeps the login's in LD_LIBRARY_PATH_ORIG,
    if there was one. Left there, the runner's libraries would be loaded into every program that a script starts.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(_BOOTLOADER_PREFIXES)}
    if _BOOTLOADER_MARK in inherited:
        kept.pop(_LIBRARY_PATH, None)
        original = kept.pop(f"{_LIBRARY_PATH}_ORIG", None)
        if original is not None:
            kept[_LIBRARY_PATH] = original
    return kept


def script_environment(
    inherited: Mapping[str, str],
    *,
    manifest: Mapping[str, str],
    own: Mapping[str, str],
    helper_bin: str,
    execution: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What any script of one execution gets as its environment; `for_interpreter` adds what one language needs.

    `inherited` is this process's environment, `manifest` and `execution` are the additions that each asks for, and
    `own` are the documented CRONIUM_* names, which win. `helper_bin` becomes the first folder of PATH.
    """
    made = {name: value for name, value in login_environment(inherited).items() if not name.startswith(_OURS)}
    made.update(manifest)
    made.update(execution or {})
    made.update(own)
    made["PATH"] = f"{helper_bin}:{made.get('PATH') or DEFAULT_PATH}"
    return made


def for_interpreter(script: Mapping[str, str], language: str, helpers: HelperFolder) -> dict[str, str]:
    """`script` with the paths that make the library found, when `language` is `python` or `node`; else unchanged."""
    made = dict(script)
    if language == "python":
        made["PYTHONPATH"] = _in_front(helpers.python, made.get("PYTHONPATH"), ":")
    elif language == "node":
        made["NODE_PATH"] = _in_front(helpers.node, made.get("NODE_PATH"), ":")
        preload = f"--require {_node_word(helpers.node + '/cronium.js')}"
        made["NODE_OPTIONS"] = _in_front(preload, made.get("NODE_OPTIONS"), " ")
    return made


def _in_front(first: str, rest: str | None, separator: str) -> str:
    return f"{first}{separator}{rest}" if rest else first


def _node_word(word: str) -> str:
    """`word` as one word of NODE_OPTIONS, where spaces separate, and double quotes and backslashes quote."""
    if not any(character in word for character in ' "\\'):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
