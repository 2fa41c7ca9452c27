"""What is fuzzed, and what must hold whatever the bytes are: one function of `bytes` for each parser.

hypothesis (test_fuzz.py) and atheris (atheris_targets.py) call the same functions. A target returns nothing; it fails
by an assertion, or by an exception that the parser must not raise. The agent's target is in `fuzz_agent`.
"""

import base64
import contextlib
import functools
import html
import io
import itertools
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock
from urllib.parse import quote, quote_plus

import jsonschema

from cronium_runner import archive, guardian, manifest, payload
from cronium_runner.errors import ManifestError, PayloadError, RunnerError
from cronium_runner.manifest import Manifest
from cronium_runner.masking import Masker
from cronium_runner.submission import from_frame
from cronium_runner.wire import exactjson, frames, words
from cronium_runner.wire.codes import CODES
from cronium_runner.wire.frames import Frame, FrameReader, GreetingReader, ProtocolError
from cronium_runner.wire.results import Result, exit_status
from faults import fuzz_archive
from faults.fuzz_source import TEXTS, Source

Target = Callable[[bytes], None]
LONGEST_MESSAGE: Final = 600
"""Characters: a message is one sentence, also when what it is about is large."""


def check_code(code: str, prefix: str = "") -> None:
    """A code is a listed one of its kind, and no defect of ours."""
    assert code in CODES
    assert code.startswith(prefix)
    assert code != "runner.internal"


def check_message(message: str, longest: int = LONGEST_MESSAGE) -> None:
    """A message is one line that a terminal can take, and of bounded length."""
    assert message.isprintable(), ascii(message)
    assert len(message) <= longest, f"{len(message)} characters"


@functools.cache
def room() -> Path:
    """A folder in memory, for this process. TMPDIR chooses where, and who set it removes it."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


# Extraction

UNPACKED: Final = 100_000
ENTRIES: Final = 6
PAX_BYTES: Final = 2048
SMALL_CAPS: Final[dict[str, Any]] = {
    "MAX_UNPACKED_BYTES": UNPACKED,
    "RATIO_FREE_BYTES": 20_000,
    "MAX_ENTRIES": ENTRIES,
    "MAX_PAX_BYTES": PAX_BYTES,
    "MAX_LONG_NAME_BYTES": 1200,
}
"""So small that a case of a kilobyte reaches each of them."""


def extraction(data: bytes) -> None:
    """Only files and folders of ours below the directory, nothing beside it; or PayloadError with one sentence."""
    source = Source(data)
    raw = data[1:] if source.chance(16) else fuzz_archive.payload(source)
    place = room() / "extraction"
    (place / "work").mkdir(parents=True, mode=0o700)
    (place / "outside").mkdir()
    try:
        with mock.patch.multiple(archive, **SMALL_CAPS):
            files = _unpacked(raw, place / "work")
            _check_contents(raw, files, place / "work")
        assert sorted(os.listdir(place)) == ["outside", "work"]
        assert os.listdir(place / "outside") == []
        assert not os.path.lexists("/tmp/cronium-owned")
    finally:
        payload.remove_tree(str(place))
    assert not place.exists()


def _unpacked(raw: bytes, work: Path) -> list[str] | None:
    """The files' names, or None when the payload was refused; either way what is there is as it may be."""
    files = None
    try:
        files = payload.unpack(io.BytesIO(raw), str(work))
    except PayloadError as error:
        check_code(error.code, "payload.")
        check_message(error.message)
    found, total = [], 0
    for folder, _, names in os.walk(work):
        assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700
        for name in names:
            state = os.lstat(os.path.join(folder, name))
            assert stat.S_ISREG(state.st_mode)
            assert state.st_nlink == 1
            assert stat.S_IMODE(state.st_mode) in (0o600, 0o700)
            total += state.st_size
            found.append(os.path.relpath(os.path.join(folder, name), work))
    assert total <= UNPACKED
    assert len(found) <= ENTRIES
    assert files is None or sorted(found) == sorted(files)
    return files


def _check_contents(raw: bytes, files: list[str] | None, work: Path) -> None:
    """`contents` reads what `unpack` has written."""
    try:
        read = list(payload.contents(io.BytesIO(raw), _Everything(), limit=UNPACKED))
    except PayloadError:
        assert files is None
        return
    if files is not None:
        assert [name for name, _ in read] == files
        assert all((work / name).read_bytes() == content for name, content in read)


class _Everything(tuple[str, ...]):
    """Wants every name."""

    def __contains__(self, _name: object) -> bool:
        return True


# Manifests

MEMBERS: Final = ("script.sh", "a", "lib/main.py", "v1", "é")
EXAMPLES: Final = (
    b"version: v1\nentrypoint: script.sh\n",
    b"version: 1.0\ninterpreter: bash\nentrypoint: ./lib//main.py\nargs: [--dry-run, 'x y', \"\\u00e9\\n\"]\n"
    b"environment: {KEY: value, B: 012, C: ~, D: 'no'}\ntimeout: 3600\nexpose_api: false\n",
    b"version: v1\nentrypoint: a\nlimits:\n  memory: 512MiB\n  cpu: 1.5\n  processes: 100\n  nice: -5\n"
    b"metadata:\n  jobId: j1\n  inputData:\n  - {a: [1, 2.50, 1e5]}\n  - |\n    text\n    more\n  - >-\n    folded\n",
    b"event_id: 1\ninput: {a: b}\nvariables:\n  A: 1\n  ? B\n  : [x]\nentrypoint: script.sh\n# comment\n",
)
YAML_TOKENS: Final = (
    b"&a ", b"*a", b"<<: ", b"!!str ", b"---\n", b"...\n", b"%YAML 1.2\n", b"? ", b": ", b"- ", b"|\n", b">\n", b"\t",
    b"\"\\ud800\"",
    b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"{", b"[", b"'", b'"', b"#", b"\x00", b"version: v1\n",
    b"\r", b"@", b"`",
    b"entrypoint: script.sh\n", b"[" * 70, b"1" * 401, b"apiToken: x\n", b"CRONIUM_X: y\n", b"\xff",
    b"\\x07", b"-1", b"e",
)  # fmt: skip
SCHEMA: Final = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).resolve().parents[2] / "manifest.schema.json").read_text())
)
# fmt: off
VALUE_MAKERS: Final[dict[str, tuple[Any, ...]]] = {
    "version": ("v1", 1, 1.0, "1", "2", None),
    "entrypoint": ("script.sh", "./lib//main.py", "../x", "/a", "é", ""),
    "interpreter": ("bash", "NodeJS", ["python3", "-u"], [""], [], "cobol"),
    "args": (["a"], [], ["\x00"], "a", [None, 1.5]),
    "timeout": (1, 86_400, 0, 86_401, 1.5, "1", True),
    "limits": ({}, {"memory": "1GiB"}, {"memory": 0}, {"cpu": 0.5}, {"nice": -21}, {"processes": 1.0}, {"disk": 1}),
    "environment": ({"A": "b"}, {"A": 1, "B": None}, {"": "x"}, {"A=": "x"}, {"CRONIUM_A": "x"}, {"A": []}),
    "expose_api": (True, False, "true", 0),
    "metadata": (
        {}, {"a": 1}, [], {"apiToken": "x"}, {"jobId": 77}, {"jobId": [1]}, {"eventName": True}, {"trigger": None},
        {"createdAt": {}}, {"eventId": 1.5, "executionId": "\0"}, {"jobId": "j" * 257}, {"inputData": [1.10, {}]},
    ),
    "event_id": (1, "x", [1]),
    "event_name": (None, {}, 2.0),
    "variables": ({}, {"A": 1}, [], None),
    "input": (None, {"a": [1]}),
    "other": (1,),
    "apiToken": ("x",),
}
# fmt: on


def manifests(data: bytes) -> None:
    """A manifest with every value in its range, or ManifestError beginning `name:line:`; and as the schema has it."""
    source = Source(data)
    match source.below(8):
        case 0 | 1 | 2:
            _read_manifest(source.mutated(source.choice(EXAMPLES), YAML_TOKENS))
        case 3:
            _read_manifest(source.mutated(source.mutated(source.choice(EXAMPLES), YAML_TOKENS), YAML_TOKENS))
        case 4 | 5 | 6:
            _compare_with_schema(source)
        case _:
            _read_manifest(data[1:])


def _read_manifest(content: bytes) -> Manifest | ManifestError:
    try:
        read = manifest.parse_manifest(content, members=MEMBERS)
    except ManifestError as error:
        check_code(error.code)
        assert error.code.startswith(("manifest.", "limits."))  # noqa: PT017 - what is raised is the subject
        _check_place(error.message, content)
        return error
    _check_manifest(read)
    return read


def _check_place(message: str, content: bytes) -> None:
    line = re.match(r"manifest\.yaml:(\d+): .", message)
    assert line, message
    assert 1 <= int(line[1]) <= len(content) + 1
    check_message(message)


def _check_manifest(read: Manifest) -> None:
    assert read.version == "v1"
    assert read.entrypoint in MEMBERS
    assert all(isinstance(word, str) and "\0" not in word for word in (*read.args, *read.environment.values()))
    assert all(name and "=" not in name and "\0" not in name for name in read.environment)
    assert read.timeout is None or 1 <= read.timeout <= 86_400
    assert isinstance(read.interpreter, str | tuple | None)
    assert isinstance(read.expose_api, bool)
    for warning in read.warnings:
        assert re.match(r"manifest\.yaml:\d+: ", warning)
        check_message(warning)
    for kept in (read.metadata, read.variables):
        assert exactjson.encode(dict(kept))
        assert "apiToken" not in kept or kept is read.variables


def _compare_with_schema(source: Source) -> None:
    """JSON is YAML: the parser and the published schema say the same of a document that both can read."""
    document: Any = {"version": "v1", "entrypoint": "script.sh"}
    for _ in range(1 + source.below(4)):
        key = source.choice(tuple(VALUE_MAKERS))
        document[key] = source.choice(VALUE_MAKERS[key]) if not source.chance(3) else source.json(2)
    try:
        content = json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    read = _read_manifest(content)
    if isinstance(read, ManifestError) and (
        "is not a file of the payload" in read.message  # which files there are, the schema doesn't know
        or read.code == "manifest.not_yaml"  # what JSON allows in a text, and YAML doesn't
        or "without 'entrypoint'" in read.message
    ):
        return
    has_limits = isinstance(read, ManifestError) and read.code.startswith("limits.")
    assert has_limits or SCHEMA.is_valid(json.loads(content)) is isinstance(read, Manifest), (content, read)


# Frames


def frame_stream(data: bytes) -> None:
    """However the bytes arrive, the same frames; nothing but ProtocolError; and what was encoded is decoded."""
    source = Source(data)
    limit = source.choice((64, frames.MAX_BODY))
    content = b"".join(source.several(lambda: _some_frame(source), 6))
    content = source.mutated(content, (b"\xff\xff\xff\xff", bytes(4), b"\x00"))
    whole = _frames_of([content], limit)
    assert _frames_of(source.cut(content), limit) == whole
    assert _frames_of([content[at : at + 1] for at in range(len(content))], limit) == whole
    found, is_broken = whole
    again = b"".join(frames.encode(*frame) for frame in found)
    assert content.startswith(again)
    assert is_broken or len(content) - len(again) < 9 + limit
    for frame in found:
        for decode in (
            Frame.json,
            lambda frame: frames.decode_data(frame.body),
            lambda f: frames.decode_credit(f.body),
        ):
            with contextlib.suppress(ProtocolError):
                decode(frame)
    _check_greeting(source)


def _some_frame(source: Source) -> bytes:
    body = source.choice(
        (b"", b"{}", b'{"a": 1}', b"[" * 40, frames._DATA.pack(1, 5) + b"x", frames._CREDIT.pack(1, 5))
    )
    return frames.encode(
        source.byte(), source.below(2**32), body if not source.chance(3) else source.take(source.byte())
    )


def _frames_of(pieces: Iterable[bytes], limit: int) -> tuple[list[Frame], bool]:
    """The frames, and whether the stream was then found broken."""
    reader, found = FrameReader(max_body=limit), []
    for piece in pieces:
        try:
            for frame in reader.feed(piece):
                found.append(frame)
        except ProtocolError as error:
            check_message(str(error))
            return found, True
    return found, False


def _check_greeting(source: Source) -> None:
    noise = source.mutated(source.choice((b"", b"motd\n", b"\x1e", frames.MAGIC[:9], b"x" * 60, frames.MAGIC[:-1])))
    content = noise + source.choice((frames.MAGIC, b"", frames.MAGIC * 2)) + source.take(9)
    with mock.patch.object(frames, "MAX_BEFORE_MAGIC", 64):
        whole = _greeting_of([content])
        assert _greeting_of(source.cut(content)) == whole
        assert _greeting_of([content[at : at + 1] for at in range(len(content))]) == whole
    if whole is not None:
        assert whole[0] + frames.MAGIC + whole[1] == content


def _greeting_of(pieces: Iterable[bytes]) -> tuple[bytes, bytes] | None:
    """What came before the magic line and after it; None when it never came."""
    reader, arriving = GreetingReader(), iter(pieces)
    for piece in arriving:
        try:
            rest = reader.feed(piece)
        except ProtocolError:
            return None
        if rest is not None:
            return bytes(reader.printed), rest + b"".join(arriving)
    return None


# Exact JSON


class _Written(str):
    """A number as it was written."""

    __slots__ = ()


JSON_TOKENS: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\ud800", b"\\ud83d\\ude00", b"NaN", b"-Infinity", b"1e5", b"-0",
    b"-0.0",
    b"1.10", b"1E400", b"0.1e-400", b"12345678901234567890123.5", b"9" * 4301, b"[" * 510, b'{"a":', b"null", b"true",
    b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\x1f", b" ", b"\n", b"01", b"+1", b"\xe2\x80\xa8", b"\\u0000",
)  # fmt: skip


def exact_json(data: bytes) -> None:
    """Accepts what Python's json accepts, less what is told; gives every digit back; raises ValueError only."""
    source = Source(data)
    match source.below(3):
        case 0:
            text = source.mutated(json.dumps(source.json(4)).encode(), JSON_TOKENS)
        case 1:
            text = b"".join(source.several(lambda: source.choice(JSON_TOKENS), 12))
        case _:
            text = data[1:]
    try:
        value = exactjson.loads(text)
    except ValueError as error:
        check_message(str(error))
        assert not _is_plain_json(text)
        return
    written = exactjson.encode(value)
    assert _as_written(written) == _as_written(text)
    assert exactjson.encode(exactjson.loads(written)) == written
    assert b"\n" not in written


def _as_written(text: bytes) -> Any:
    return json.loads(text.decode(), parse_int=_Written, parse_float=_Written)


def _is_plain_json(text: bytes) -> bool:
    """Whether it is JSON with nothing in it that exactjson refuses on purpose."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        value = json.loads(text.decode(), parse_int=_Written, parse_float=_Written, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    depth = itertools.accumulate((byte in b"[{") - (byte in b"]}") for byte in text)
    return max(depth, default=0) <= exactjson.MAX_DEPTH


# Masking

LETTERS: Final = 'abcxyz01+/=\\"é\n\r\t '
"""Few, so that secrets overlap; no star, of which masks are made."""


def masking(data: bytes) -> None:
    """No split lets through a secret, a line of one, its JSON form or its base64; and splits change nothing."""
    source = Source(data)
    secrets = [_secret(source) for _ in range(1 + source.below(4))]
    content = b"".join(_around_secret(source, source.choice(secrets)) for _ in range(source.below(8)))
    shown = _masked(secrets, [content])
    assert _masked(secrets, source.cut(content)) == shown
    assert _masked(secrets, source.cut(content, 60)) == shown
    assert _masked(secrets, [content[at : at + 1] for at in range(len(content))]) == shown
    for secret in secrets:
        for form in _telling_forms(secret):
            assert form not in shown, (secrets, form, content, shown)


def _secret(source: Source) -> str:
    return "".join(source.choice(LETTERS) for _ in range(source.choice((6, 7, 8, 9, 13, 21, 40, 3))))


def _around_secret(source: Source, secret: str) -> bytes:
    raw = secret.encode()
    before, after = source.take(source.below(4)), source.take(source.below(4))
    match source.below(14):
        case 8:
            return before + json.dumps(secret).replace("/", source.choice(("/", "\\/"))).encode() + after
        case 9:
            return before + quote_plus(secret).encode() + after
        case 10:
            return before + raw.hex().encode() + after
        case 11:
            return before + html.escape(secret).encode() + after
        case 12:
            return before + shlex.quote(secret).encode() + after
        case 13:
            return base64.encodebytes(before + raw + b"_" * 60 + raw)
        case 0 | 1:
            return before + raw + after
        case 2:
            return base64.b64encode(before + raw + after)
        case 3:
            return base64.urlsafe_b64encode(before + raw + after)
        case 4:
            return json.dumps(secret, ensure_ascii=False).encode()
        case 5:
            return raw[: source.below(len(raw) + 1)] + raw
        case 6:
            return b"\r\n".join(raw.splitlines()[::-1])
        case _:
            return source.choice(LETTERS).encode() * source.below(9)


def _telling_forms(secret: str) -> Iterator[bytes]:
    """What must not be seen, found without the masker's own means."""
    if len(secret) < 6:
        return
    raw = secret.encode()
    if len(secret.strip()) >= 6:
        yield raw.strip()
    for each in raw.splitlines():
        if len(each.strip().decode("utf-8", "replace")) >= 6:
            yield each.strip()
    for line in secret.splitlines():
        text = line.strip()
        if len(text) >= 6:
            yield from (json.dumps(text)[1:-1].encode(), quote(text, safe="").encode(), quote_plus(text).encode())
            yield from (text.encode().hex().encode(), html.escape(text).encode(), text.replace("'", "'\\''").encode())
    for before in range(3):
        # Encoded with either neighbour: the characters that no neighbour changes.
        one, other = (base64.b64encode(bytes([fill]) * before + raw + bytes([fill]) * 3) for fill in (0, 255))
        certain = bytes(first if first == second else 0 for first, second in zip(one, other, strict=True)).strip(b"\0")
        if len(certain) >= 6:
            yield certain
            yield certain.translate(bytes.maketrans(b"+/", b"-_"))


def _masked(secrets: list[str], pieces: Iterable[bytes]) -> bytes:
    masker = Masker(secrets)
    return b"".join([*(masker.feed(piece) for piece in pieces), masker.flush()])


# The smaller ones


def guardian_words(data: bytes) -> None:
    """What a supervisor tells its guardian: the same however it arrives, ValueError for what is no such word."""
    source = Source(data)
    rejection = guardian.rejected("id", None, RunnerError("payload.damaged", "it is damaged"))
    good = b"rejected " + exactjson.encode(rejection.to_json()) + b"\n"
    lines = (
        b"claimed\n",
        b"exists\n",
        good,
        b"\n",
        b"finished\n",
        b"rejected {}\n",
        b"rejected []\n",
        b"rejected\n",
        b"\xff\n",
    )
    content = source.mutated(b"".join(source.several(lambda: source.choice(lines), 5)), (b"\n", b" ", b"{", b"[]"))
    whole = _verdict([content])
    assert _verdict(source.cut(content)) == whole
    assert _verdict([content[at : at + 1] for at in range(len(content))]) == whole
    if content == good:
        assert whole == ("rejected", rejection)


def _verdict(pieces: Iterable[bytes]) -> tuple[str | None, Result | None] | None:
    reader = guardian.GuardianReader()
    for piece in pieces:
        try:
            reader.feed(piece)
        except ValueError:
            return None
    return reader.verdict, reader.rejection


def results(data: bytes) -> None:
    """A result from any JSON at all: usable in every part, or ValueError."""
    source = Source(data)
    value: Any = Result.from_json({"executionId": "id", "state": "succeeded"}).to_json()
    for _ in range(source.below(4)):
        value[source.choice(tuple(value))] = source.json(2)
    if source.chance(3):
        part = source.choice(("usage", "error", "stdout", "stderr"))
        keys = {"usage": ("cpuMs", "maxRssKiB"), "error": ("code", "message")}.get(
            part, ("bytes", "truncated", "sha256")
        )
        value[part] = {source.choice(keys): source.json(1)}
    if source.chance(8):
        value = source.json(3)
    try:
        result = Result.from_json(value)
    except ValueError as error:
        check_message(str(error))
        return
    again = result.to_json()
    with contextlib.suppress(exactjson.UnsupportedJSONError):  # what is in it may be no UTF-8
        exactjson.encode(again)
    assert Result.from_json(again) == result
    assert 0 <= exit_status(result) <= 255
    assert isinstance(result.stdout.size, int)
    assert result.error_code is None or isinstance(result.error_code, str)


SUBMISSION_KEYS: Final = (
    "executionId", "sha256", "input", "variables", "secrets", "event", "args", "timeout", "jobId", "onDisconnect",
    "maskedNames",
    "offsets", "follow", "limits", "unknown\n",
)  # fmt: skip


def submissions(data: bytes) -> None:
    """A submission from any JSON object, or a RunnerError of one sentence that is no defect of ours."""
    source = Source(data)
    body: dict[str, Any] = {"executionId": "id", "sha256": "0" * 64}
    for _ in range(source.below(5)):
        key = source.choice(SUBMISSION_KEYS) if not source.chance(8) else source.text()
        body[key] = source.json(2)
    if source.chance(16):
        body[source.choice(SUBMISSION_KEYS)] = source.text() * 5000
    try:
        submission = from_frame(exactjson.loads(exactjson.encode(body)), lambda digest: digest)
    except exactjson.UnsupportedJSONError:
        return
    except RunnerError as error:
        check_code(error.code)
        check_message(error.message)
        return
    assert submission.timeout is None or 0 < submission.timeout <= 86_400
    assert re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", submission.execution_id)
    assert len(submission.fingerprint("0")) == 64


def command_words(data: bytes) -> None:
    """Words of the command line: values, or WordError of one sentence in which no secret is."""
    source = Source(data)
    hidden = "correct-horse"
    files = {"-": source.take(9), "file": b'{"a": 1}', "a": b"\xff", hidden: hidden.encode()}
    origins = ("", "@file", "@-", "@nothing", f"={hidden}", "@", "@a")
    drawn = [source.choice(("A", "", "B=", "\n", "é", "=", "\x1b")) + source.choice(("=", "", "==")) for _ in range(2)]
    calls: tuple[Callable[[], object], ...] = (
        lambda: words.json_value(source.text(), "--input", files.get),
        lambda: words.json_object(source.text() * source.choice((1, 9000)), "--event", files.get),
        lambda: words.variables([*drawn, source.text(), "A=b"]),
        lambda: words.secrets([word + source.choice(origins) for word in drawn], {"A": hidden}, files.get),
        lambda: words.secrets([f"A={hidden}", *TEXTS[: source.below(9)]], {}, files.get),
    )
    try:
        source.choice(calls)()
    except words.WordError as error:
        check_code(error.code)
        check_message(error.message.replace(hidden, "\n"))  # a secret in it would be no printable text


def forget_rooms() -> None:
    """Removes this process's folder."""
    shutil.rmtree(room(), ignore_errors=True)
    room.cache_clear()
