"""The manifest of a payload: what to run, with what, for how long. `manifest.schema.json` is its contract.

Turns a strict YAML tree into one frozen value and refuses what the schema doesn't allow, each time with file,
line and key. It opens no file and looks at no host: which program an interpreter is, `interpreter` says.
"""

from collections import abc
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from . import strict_yaml
from .errors import ManifestError
from .interpreter import canonical, known_names
from .strict_yaml import Mapping, Node, Scalar, Sequence
from .wire import fields, limits
from .wire.limits import Limits

FILE_NAMES: Final = ("manifest.yaml", "manifest.yml")
# One second is the clock's and the kill sequence's resolution; a day is what a job is allowed.
MIN_TIMEOUT_SECONDS: Final = 1
MAX_TIMEOUT_SECONDS: Final = 86_400

# A secret in a payload would be in every cache; the controller hands these over by other means.
_IGNORED: Final = ("apiEndpoint", "apiToken")
_FLAT_SCRIPTS: Final = ("script.sh", "script.py", "script.js")
_FLAT_METADATA: Final = {
    "event_id": "eventId",
    "execution_id": "executionId",
    "event_name": "eventName",
    "input": "inputData",
}
_FLAT_KEYS: Final = (*_FLAT_METADATA, "variables")
_KEYS: Final = (
    "version",
    "interpreter",
    "entrypoint",
    "environment",
    "args",
    "timeout",
    "limits",
    "expose_api",
    "metadata",
)


class Manifest(NamedTuple):
    """A checked manifest.

    `interpreter` is a canonical name, an argument vector, or None when `interpreter.resolve` shall infer it;
    `entrypoint` is a normalised member name; `timeout` is in seconds; `environment` holds the text that was
    written; `metadata` and `variables` are JSON values; `warnings` are sentences for the operator.
    """

    version: str
    interpreter: str | tuple[str, ...] | None
    entrypoint: str
    environment: abc.Mapping[str, str] = MappingProxyType({})
    args: tuple[str, ...] = ()
    timeout: float | None = None
    limits: Limits | None = None
    expose_api: bool = False
    metadata: abc.Mapping[str, Any] = MappingProxyType({})
    variables: abc.Mapping[str, Any] = MappingProxyType({})
    warnings: tuple[str, ...] = ()


def find_manifest(members: Collection[str]) -> str:
    """The manifest among a payload's files: manifest.yaml, else manifest.yml. Raises ManifestError."""
    for name in FILE_NAMES:
        if name in members:
            return name
    raise ManifestError(
        "manifest.missing", "the payload has no manifest.yaml at its top; pack it from the job's own folder"
    )


def parse_manifest(text: bytes, *, name: str = "manifest.yaml", members: Collection[str]) -> Manifest:
    """The manifest in `text`, the content of the payload's file `name`; `members` are all its files.

    Raises ManifestError with `name:line:` in front and the key in it.
    """
    return _Reader(name, members).manifest(strict_yaml.parse(text, name))


class _Reader:
    """Checks one document key by key; every refusal goes through `_error`, which knows the file's name."""

    def __init__(self, file: str, members: Collection[str]) -> None:
        self._file = file
        self._members = members
        self._warnings: list[str] = []

    def manifest(self, root: Node | None) -> Manifest:
        if not isinstance(root, Mapping):
            line = root.line if root else 1
            raise self._error(
                "manifest.invalid",
                line,
                "a manifest is a mapping of keys to values, beginning with 'version: v1'",
            )
        if "metadata" not in root.items and any(key in root.items for key in _FLAT_KEYS):
            return self._flat(root)
        self._refuse_unknown(root, _KEYS, "")
        for key in ("version", "entrypoint"):
            if key not in root.items:
                code = "manifest.entrypoint" if key == "entrypoint" else "manifest.invalid"
                raise self._error(code, root.line, f"{key!r} is missing; add it at the top level")
        read = root.items
        return Manifest(
            version=self._version(read["version"]),
            interpreter=self._optional(read, "interpreter", self._interpreter, None),
            entrypoint=self._entrypoint(read["entrypoint"]),
            environment=self._optional(read, "environment", self._environment, {}),
            args=self._optional(read, "args", self._args, ()),
            timeout=self._optional(read, "timeout", self._timeout, None),
            limits=self._optional(read, "limits", self._limits, None),
            expose_api=self._optional(read, "expose_api", self._expose_api, False),
            metadata=self._optional(read, "metadata", self._metadata, {}),
            warnings=tuple(self._warnings),
        )

    def _flat(self, root: Mapping) -> Manifest:
        """The older form: event fields at the top level, the script found by its name."""
        self._refuse_unknown(root, (*_FLAT_KEYS, "version", "interpreter", "entrypoint", "environment"), "")
        read = root.items
        if "entrypoint" in read:
            entrypoint = self._entrypoint(read["entrypoint"])
        else:
            scripts = [script for script in _FLAT_SCRIPTS if script in self._members]
            if len(scripts) != 1:
                found = " and ".join(scripts) or "none"
                raise self._error(
                    "manifest.entrypoint",
                    root.line,
                    f"without 'entrypoint' there is exactly one of {', '.join(_FLAT_SCRIPTS)}, not {found}; name it",
                )
            entrypoint = scripts[0]
        variables = strict_yaml.value(read["variables"]) if "variables" in read else {}
        if not isinstance(variables, dict):
            raise self._error(
                "manifest.invalid", read["variables"].line, "'variables' must be a mapping of names to values"
            )
        return Manifest(
            version=self._optional(read, "version", self._version, "v1"),
            interpreter=self._optional(read, "interpreter", self._interpreter, None),
            entrypoint=entrypoint,
            environment=self._optional(read, "environment", self._environment, {}),
            metadata={new: self._field(new, old, read[old]) for old, new in _FLAT_METADATA.items() if old in read},
            variables=variables,
            warnings=tuple(self._warnings),
        )

    # One method for each key

    def _version(self, node: Node) -> str:
        if isinstance(node, Scalar) and (node.text in ("v1", "1", "1.0") or strict_yaml.number(node) == 1):
            return "v1"
        raise self._error("manifest.version", node.line, f"unknown manifest version {_shown(node)} (known: v1)")

    def _interpreter(self, node: Node) -> str | tuple[str, ...]:
        if isinstance(node, Sequence):
            words = self._texts(node, "interpreter")
            if not words or not words[0]:
                raise self._error(
                    "manifest.interpreter", node.line, "'interpreter' as a list needs a program as first word"
                )
            return words
        known = canonical(node.text) if isinstance(node, Scalar) else None
        if known is None:
            raise self._error(
                "manifest.interpreter",
                node.line,
                f"unsupported interpreter {_shown(node)} (known: {known_names()}, or a list of words)",
            )
        return known

    def _entrypoint(self, node: Node) -> str:
        text = self._text(node, "entrypoint")
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or ".." in parts:
            raise self._error(
                "manifest.entrypoint",
                node.line,
                f"entrypoint {_shown(node)} is outside the payload; name a file in it",
            )
        name = "/".join(parts)
        if name not in self._members:
            raise self._error(
                "manifest.entrypoint", node.line, f"entrypoint {_shown(node)} is not a file of the payload"
            )
        return name

    def _environment(self, node: Node) -> dict[str, str]:
        mapping = self._mapping(node, "environment")
        for key in mapping.items:
            if not key or "=" in key or "\x00" in key:
                raise self._error(
                    "manifest.invalid",
                    mapping.key_lines[key],
                    f"environment name {key!r:.60} is empty or has '=' or a NUL in it; rename it",
                )
            if key.startswith("CRONIUM_"):
                self._warn(
                    mapping.key_lines[key],
                    f"environment {key!r:.60} is ignored: CRONIUM_ names are the runner's",
                )
        return {key: self._text(item, f"environment.{key}") for key, item in mapping.items.items()}

    def _args(self, node: Node) -> tuple[str, ...]:
        if not isinstance(node, Sequence):
            raise self._error("manifest.invalid", node.line, "'args' must be a list of words")
        return self._texts(node, "args")

    def _timeout(self, node: Node) -> float:
        seconds = strict_yaml.number(node) if isinstance(node, Scalar) else None
        if seconds is None or not MIN_TIMEOUT_SECONDS <= seconds <= MAX_TIMEOUT_SECONDS:
            raise self._error(
                "manifest.invalid",
                node.line,
                f"'timeout' must be a number of seconds from {MIN_TIMEOUT_SECONDS} to {MAX_TIMEOUT_SECONDS}, "
                f"not {_shown(node)}",
            )
        return float(seconds)

    def _limits(self, node: Node) -> Limits:
        mapping = self._mapping(node, "limits")
        self._refuse_unknown(mapping, tuple(limits.READERS), "limits.")
        return Limits(**{key: self._limit(key, item) for key, item in mapping.items.items()})

    def _limit(self, key: str, node: Node) -> Any:
        try:
            return limits.READERS[key](f"limits.{key}", strict_yaml.value(node))
        except limits.LimitError as error:
            raise self._error("manifest.invalid", node.line, str(error)) from None

    def _expose_api(self, node: Node) -> bool:
        typed = strict_yaml.value(node)
        if not isinstance(typed, bool):
            raise self._error("manifest.invalid", node.line, f"'expose_api' must be true or false, not {_shown(node)}")
        return typed

    def _metadata(self, node: Node) -> dict[str, Any]:
        mapping = self._mapping(node, "metadata")
        self._ignore(mapping, "metadata.")
        return {
            key: self._field(key, f"metadata.{key}", item) for key, item in mapping.items.items() if key not in _IGNORED
        }

    def _field(self, field: str, key: str, node: Node) -> Any:
        """A value of the metadata: text as it was written where it has to be text, else as JSON has it."""
        if field not in fields.METADATA_FIELDS:
            return strict_yaml.value(node)
        written = node.text if isinstance(node, Scalar) and not strict_yaml.is_null(node) else strict_yaml.value(node)
        try:
            return fields.as_text(field, written)
        except fields.TextError as error:
            raise self._error("manifest.invalid", node.line, str(error).replace(repr(field), repr(key))) from None

    # What they share

    def _optional(self, read: dict[str, Node], key: str, reader: Callable[[Node], Any], default: Any) -> Any:
        return reader(read[key]) if key in read else default

    def _mapping(self, node: Node, key: str) -> Mapping:
        if not isinstance(node, Mapping):
            raise self._error(
                "manifest.invalid",
                node.line,
                f"{key!r} must be a mapping of keys to values, not {_shown(node)}",
            )
        return node

    def _text(self, node: Node, key: str) -> str:
        """The text of a scalar as it was written, whatever type another reader would give it."""
        if not isinstance(node, Scalar) or "\x00" in node.text:
            raise self._error(
                "manifest.invalid", node.line, f"{key!r:.80} must be one text without NUL, not {_shown(node)}"
            )
        return node.text

    def _texts(self, node: Sequence, key: str) -> tuple[str, ...]:
        return tuple(self._text(item, f"{key}[{index}]") for index, item in enumerate(node.items))

    def _refuse_unknown(self, mapping: Mapping, known: tuple[str, ...], prefix: str) -> None:
        self._ignore(mapping, prefix)
        for key, line in mapping.key_lines.items():
            if key not in known and key not in _IGNORED:
                raise self._error(
                    "manifest.unknown_key",
                    line,
                    f"unknown key {prefix + key!r:.80} (known: {', '.join(known)}); your own go into metadata.extra",
                )

    def _ignore(self, mapping: Mapping, prefix: str) -> None:
        for key in _IGNORED:
            if key in mapping.items:
                self._warn(mapping.key_lines[key], f"{prefix + key!r} is ignored; a payload must not carry it")

    def _warn(self, line: int, sentence: str) -> None:
        self._warnings.append(f"{self._file}:{line}: {sentence}")

    def _error(self, code: str, line: int, sentence: str) -> ManifestError:
        return ManifestError(code, f"{self._file}:{line}: {sentence}")


def _shown(node: Node) -> str:
    if isinstance(node, Scalar):
        return ascii(node.text if len(node.text) <= 60 else node.text[:57] + "...")
    return "a mapping" if isinstance(node, Mapping) else "a list"
