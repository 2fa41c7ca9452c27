"""Makes `cronium` present in every Python script of a job without an import, then steps aside.

Python imports this at start because the helper folder is on PYTHONPATH. It must cost next to nothing, print
nothing, fail nothing, and let a `sitecustomize` further down sys.path (Debian has one) run as if this one were not
there. A job may start any Python, so this file also compiles on 2.7, where it only steps aside.
"""

import sys


def _folder():
    # type: () -> str
    return __file__.rpartition("/")[0] or "."


class _Cronium(type(sys)):  # type: ignore[misc]
    """Stands in for the module until it is used: importing it takes longer than most scripts' start."""

    def __getattr__(self, name):
        # type: (str) -> object
        import builtins

        module = _load()
        if getattr(builtins, "cronium", None) is self:
            setattr(builtins, "cronium", module)
        return getattr(module, name)

    def __dir__(self):
        # type: () -> list[str]
        return dir(_load())


def _load():
    # type: () -> object
    """Our module, also when the script itself, or a file beside it, is called cronium.py."""
    import importlib.util
    import os.path

    path = _folder() + "/cronium.py"
    loaded = sys.modules.get("cronium")
    found = (loaded and getattr(loaded, "__spec__", None)) or importlib.util.find_spec("cronium")
    if found and found.origin and os.path.realpath(found.origin) == os.path.realpath(path):
        import cronium  # type: ignore[import-not-found, unused-ignore]

        return cronium
    spec = importlib.util.spec_from_file_location("cronium", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_next_sitecustomize():
    # type: () -> None
    """Import the one that would have been imported without us; what it raises is for `site` to report, as ever."""
    ours = [entry for entry in sys.path if entry.rstrip("/") == _folder().rstrip("/")]
    # Not removed but made blind, so that the next one may insert into sys.path wherever it likes.
    blind = _folder() + "/-"
    this = sys.modules.pop("sitecustomize", None)
    for position, entry in enumerate(sys.path):
        if entry in ours:
            sys.path[position] = blind
    try:
        import sitecustomize  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        # Also when the next one fails over a module it lacks: `site` would report that, so it still must.
        if not _is_missing(sys.exc_info()[1]):
            raise
    finally:
        sys.path_importer_cache.pop(blind, None)
        for position, entry in enumerate(sys.path):
            if entry == blind and ours:
                sys.path[position] = ours[0]
        if this is not None:
            sys.modules.setdefault("sitecustomize", this)


def _is_missing(error):
    # type: (object) -> bool
    return getattr(error, "name", "sitecustomize") == "sitecustomize"


if sys.version_info >= (3, 6):
    import builtins

    if not hasattr(builtins, "cronium"):
        setattr(builtins, "cronium", _Cronium("cronium"))
_run_next_sitecustomize()
