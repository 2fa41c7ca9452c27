"""Manifest: the parser and manifest.schema.json agree, errors name line and key, and no document is expensive."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cronium_runner import manifest as manifest_module
from cronium_runner import strict_yaml
from cronium_runner.errors import ManifestError
from cronium_runner.interpreter import known_names
from cronium_runner.manifest import Manifest, find_manifest, parse_manifest
from cronium_runner.wire import exactjson
from cronium_runner.wire.exactjson import NumberLiteral
from cronium_runner.wire.limits import Limits

SCHEMA = json.loads((Path(__file__).parents[2] / "manifest.schema.json").read_text())
MEMBERS = ["manifest.yaml", "script.sh", "lib/main.py"]
BASE = {"version": "v1", "entrypoint": "script.sh"}


def parse(text: str | bytes, members: list[str] = MEMBERS) -> Manifest:
    return parse_manifest(text if isinstance(text, bytes) else text.encode(), members=members)


def refusal(text: str | bytes, members: list[str] = MEMBERS) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        parse(text, members)
    assert caught.value.message.startswith("manifest.yaml:")
    assert "\n" not in caught.value.message
    return caught.value


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


# JSON is YAML, so these go to both sides exactly as they are. None: accepted; else the parser's code.
DOCUMENTS: list[tuple[Any, str | None]] = [
    (BASE, None),
    ({**BASE, "version": 1}, None),
    ({**BASE, "version": 1.0}, None),
    ({**BASE, "version": "1.0"}, None),
    ({**BASE, "version": 2}, "manifest.version"),
    ({**BASE, "version": "v2"}, "manifest.version"),
    ({**BASE, "version": True}, "manifest.version"),
    ({**BASE, "version": None}, "manifest.version"),
    ({**BASE, "version": ["v1"]}, "manifest.version"),
    ({"entrypoint": "script.sh"}, "manifest.invalid"),
    ({"version": "v1"}, "manifest.entrypoint"),
    ({}, "manifest.invalid"),
    ([], "manifest.invalid"),
    ("v1", "manifest.invalid"),
    (None, "manifest.invalid"),
    *(({**BASE, "interpreter": name}, None) for name in known_names().split(", ")),
    *(({**BASE, "interpreter": name}, None) for name in ("NODEJS", "Bash", "JavaScript", "PyThOn3")),
    *(
        ({**BASE, "interpreter": name}, "manifest.interpreter")
        for name in ("cobol", "", "bash ", 3, None, {}, [], [""])
    ),
    ({**BASE, "interpreter": ["python3", "-u", ""]}, None),
    ({**BASE, "interpreter": ["python3", ["-u"]]}, "manifest.invalid"),
    ({**BASE, "interpreter": ["a\0b"]}, "manifest.invalid"),
    ({**BASE, "entrypoint": "./lib//main.py"}, None),
    *(
        ({**BASE, "entrypoint": name}, "manifest.entrypoint")
        for name in ("/etc/passwd", "../x", "a/../b", "a/..", "..")
    ),
    ({**BASE, "entrypoint": ["script.sh"]}, "manifest.invalid"),
    ({**BASE, "environment": {"A": "b", "B": 1, "C": None, "D": True, "E": 1.5, "f.g": ""}}, None),
    ({**BASE, "environment": {"A": ["b"]}}, "manifest.invalid"),
    ({**BASE, "environment": {"A": {"b": "c"}}}, "manifest.invalid"),
    ({**BASE, "environment": {"": "b"}}, "manifest.invalid"),
    ({**BASE, "environment": {"A=B": "c"}}, "manifest.invalid"),
    ({**BASE, "environment": {"A\0": "c"}}, "manifest.invalid"),
    ({**BASE, "environment": {"A": "c\0"}}, "manifest.invalid"),
    ({**BASE, "environment": ["A=b"]}, "manifest.invalid"),
    ({**BASE, "environment": None}, "manifest.invalid"),
    ({**BASE, "args": ["--dry-run", 5, ""]}, None),
    ({**BASE, "args": "--dry-run"}, "manifest.invalid"),
    ({**BASE, "args": [["x"]]}, "manifest.invalid"),
    *(({**BASE, "timeout": seconds}, None) for seconds in (1, 1.5, 86400)),
    *(({**BASE, "timeout": seconds}, "manifest.invalid") for seconds in (0, 0.5, -1, 86401, "60", True, None, [])),
    ({**BASE, "limits": {}}, None),
    (
        {
            **BASE,
            "limits": {"memory": "512MiB", "cpu": 0.5, "processes": 9, "open_files": 64, "file_size": 1, "nice": -20},
        },
        None,
    ),
    *(({**BASE, "limits": {"memory": size}}, None) for size in (1, "1", "1KiB", "3TiB", 2**63 - 1)),
    *(
        ({**BASE, "limits": {"memory": size}}, "manifest.invalid")
        for size in (0, -1, 1.5, 2**63, "0MiB", "1.5GiB", "1GB", "1 MiB", "MiB", "", "-1KiB", None, True, [])
    ),
    *(({**BASE, "limits": {"cpu": cores}}, "manifest.invalid") for cores in (0, -1, "2", True)),
    *(({**BASE, "limits": {"processes": count}}, "manifest.invalid") for count in (0, 1.5, "5", False)),
    *(({**BASE, "limits": {"nice": nice}}, "manifest.invalid") for nice in (-21, 20, "5", {})),
    ({**BASE, "limits": {"disk": 1}}, "manifest.unknown_key"),
    ({**BASE, "limits": [1]}, "manifest.invalid"),
    ({**BASE, "expose_api": True}, None),
    ({**BASE, "expose_api": "true"}, "manifest.invalid"),
    ({**BASE, "expose_api": 1}, "manifest.invalid"),
    ({**BASE, "metadata": {"jobId": 77, "eventName": True, "trigger": None, "createdAt": 1.5}}, None),
    ({**BASE, "metadata": {"jobId": "j" * 256, "eventName": "e" * 4096}}, None),
    ({**BASE, "metadata": {"jobId": [1]}}, "manifest.invalid"),
    ({**BASE, "metadata": {"eventName": {}}}, "manifest.invalid"),
    ({**BASE, "metadata": {"jobId": "j" * 257}}, "manifest.invalid"),
    ({**BASE, "metadata": {"trigger": "e" * 4097}}, "manifest.invalid"),
    ({**BASE, "metadata": {"createdAt": "a\x00"}}, "manifest.invalid"),
    ({"event_id": [1], "entrypoint": "script.sh"}, "manifest.invalid"),
    ({"event_name": 1, "execution_id": None, "entrypoint": "script.sh"}, None),
    ({**BASE, "metadata": {"jobId": "j", "eventId": 1, "mine": {"a": [None, 1.5, "x"]}}}, None),
    ({**BASE, "metadata": []}, "manifest.invalid"),
    ({**BASE, "metadata": None}, "manifest.invalid"),
    ({**BASE, "apiEndpoint": "http://x", "apiToken": ["y"]}, None),
    ({**BASE, "Interpreter": "bash"}, "manifest.unknown_key"),
    ({**BASE, "metadata": {}, "input": {}}, "manifest.unknown_key"),
    ({"event_id": 1, "execution_id": "e", "event_name": "n", "input": {"a": 1}, "variables": {"v": [1]}}, None),
    ({"input": None}, None),
    ({"variables": [1]}, "manifest.invalid"),
    ({"event_id": 1, "timeout": 5}, "manifest.unknown_key"),
    ({"event_id": 1, "version": 3}, "manifest.version"),
    ({**BASE, "event_id": 1, "interpreter": "sh", "environment": {"A": "b"}, "apiToken": "x"}, None),
]


def schema_accepts(document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(document))


@pytest.mark.parametrize(("document", "code"), DOCUMENTS, ids=lambda part: json.dumps(part)[:60])
def test_schema_and_parser_agree(document: Any, code: str | None) -> None:
    text = json.dumps(document, ensure_ascii=False)
    assert schema_accepts(document) is (code is None)
    if code is None:
        assert isinstance(parse(text), Manifest)
    else:
        assert refusal(text).code == code


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-30, 90_000),
    st.sampled_from(["v1", "script.sh", "bash", "1GiB", "", "x", "a=b", "1.5"]),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.sampled_from(["memory", "cpu", "nice", "A", ""]), SCALARS),
)
KEYS = st.sampled_from([*manifest_module._KEYS, *manifest_module._FLAT_KEYS, "apiToken", "other"])


@settings(max_examples=500)
@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_schema_and_parser_agree_on_any_document(extra: dict[str, Any]) -> None:
    document = {**BASE, **extra}
    try:
        parse(json.dumps(document), [*MEMBERS, "v1", "bash", "1GiB", "x", "a=b", "1.5", *map(str, range(10))])
        is_accepted = True
    except ManifestError as error:
        if "is not a file of the payload" in error.message:
            return  # which files there are, the schema doesn't know
        is_accepted = False
    assert schema_accepts(document) is is_accepted


# Only YAML can say these. Line: the one the message has to name; part: what it has to contain.
REFUSED: list[tuple[str, str, int, str]] = [
    ("version: v1\nentrypoint: script.sh\ninterpreter: cobol\n", "manifest.interpreter", 3, "'cobol' (known: bash"),
    ("version: v1\nentrypoint: none.sh\n", "manifest.entrypoint", 2, "'none.sh'"),
    ("version: v1\nentrypoint: lib\n", "manifest.entrypoint", 2, "'lib'"),
    ("version: v1\n\nentry_point: script.sh\n", "manifest.unknown_key", 3, "entry_point"),
    ("version: v1\nentrypoint: script.sh\nlimits:\n  memory: 1\n  disk: 1\n", "manifest.unknown_key", 5, "limits.disk"),
    ("version: v1\nversion: v1\n", "manifest.duplicate_key", 2, "'version'"),
    ("version: v1\nmetadata:\n  extra:\n    1: a\n    '1': b\n", "manifest.duplicate_key", 5, "'1'"),
    ("version: v1\nenvironment: &e {A: b}\n", "manifest.alias", 2, "an anchor"),
    ("version: v1\nentrypoint: *e\n", "manifest.alias", 2, "an alias"),
    ("version: v1\nmetadata:\n  <<: {a: b}\n", "manifest.alias", 3, "<<"),
    ("version: !!str v1\n", "manifest.alias", 1, "a tag"),
    ("version: v1\nmetadata: !!python/object/apply:os.system [id]\n", "manifest.alias", 2, "a tag"),
    ("version: !  v1\n", "manifest.alias", 1, "a tag"),
    ("version: v1\nentrypoint: script.sh\n---\nversion: v1\n", "manifest.not_yaml", 3, "second document"),
    ("version: v1\n  entrypoint: script.sh\n", "manifest.not_yaml", 2, "not valid YAML"),
    ("version: v1\nentrypoint: [\n", "manifest.not_yaml", 3, "not valid YAML"),
    ("version: v1\n\tentrypoint: x\n", "manifest.not_yaml", 2, "not valid YAML"),
    ("version: v1\nentrypoint: \x01\n", "manifest.not_yaml", 2, "control character"),
    ('version: v1\nargs: ["\\ud800"]\n', "manifest.not_yaml", 2, "surrogate"),
    ("version: v1\n? [a, b]\n: c\n", "manifest.invalid", 2, "as a key"),
    ("version: v1\nmetadata:\n  ? {a: b}\n  : c\n", "manifest.invalid", 3, "as a key"),
    ("version: v1\nentrypoint: script.sh\ntimeout: 1:30\n", "manifest.invalid", 3, "timeout"),
    ("version: v1\nentrypoint: script.sh\ntimeout: .inf\n", "manifest.invalid", 3, "timeout"),
    ("version: v1\nentrypoint: script.sh\ntimeout: 0x10\n", "manifest.invalid", 3, "timeout"),
    ("version: v1\nentrypoint: script.sh\nexpose_api: yes\n", "manifest.invalid", 3, "expose_api"),
    (
        "version: v1\nentrypoint: script.sh\nlimits:\n  memory: 9" + "9" * 30 + "\n",
        "manifest.invalid",
        4,
        "limits.memory",
    ),
    ("version: v1\nentrypoint: script.sh\nenvironment:\n  A: x\n  B: [y]\n", "manifest.invalid", 5, "environment.B"),
    ("version: v1\nentrypoint: script.sh\nargs:\n- a\n- {b: c}\n", "manifest.invalid", 5, "args[1]"),
    ("", "manifest.invalid", 1, "mapping"),
    ("# nothing\n", "manifest.invalid", 1, "mapping"),
]


@pytest.mark.parametrize(("text", "code", "line", "part"), REFUSED, ids=[case[0][-30:] for case in REFUSED])
def test_refusals_name_file_line_and_key(text: str, code: str, line: int, part: str) -> None:
    error = refusal(text)
    assert error.code == code, error.message
    assert error.message.startswith(f"manifest.yaml:{line}: ")
    assert part in error.message


def test_not_utf8() -> None:
    error = refusal(b"version: v1\nentrypoint: caf\xe9\n")
    assert (error.code, error.message[:16]) == ("manifest.not_yaml", "manifest.yaml:2:")
    assert refusal("version: v1\n".encode("utf-16")).code == "manifest.not_yaml"


def test_everything_at_once() -> None:
    parsed = parse(
        b"\xef\xbb\xbfversion: v1\r\ninterpreter: NODEJS\r\nentrypoint: ./lib/main.py\r\n"
        b"args: [--dry-run, 012, no]\r\ntimeout: 1.5\r\nexpose_api: true\r\n"
        b"limits: {memory: 512MiB, cpu: 2, processes: 100, open_files: 1024, file_size: 1GiB, nice: 5}\r\n"
    )
    assert parsed == Manifest(
        version="v1",
        interpreter="node",
        entrypoint="lib/main.py",
        args=("--dry-run", "012", "no"),
        timeout=1.5,
        expose_api=True,
        limits=Limits(memory=512 << 20, cpu=2.0, processes=100, open_files=1024, file_size=1 << 30, nice=5),
    )


def test_environment_is_the_text_that_was_written() -> None:
    written = {
        "A": "no", "B": "012", "C": "1:30", "D": "~", "E": "null", "F": "0x10", "G": "1e3", "H": "2020-01-01",
        "I": "True", "J": "1_000", "K": "+1", "L": "=", "M": "off", "N": "1.10", "O": "",
    }  # fmt: skip
    lines = "".join(f"  {name}: {text}\n" for name, text in written.items())
    parsed = parse(f"version: v1\nentrypoint: script.sh\nenvironment:\n{lines}  no: 1\n  1: x\n  P: |\n    a\n    b\n")
    assert parsed.environment == {**written, "no": "1", "1": "x", "P": "a\nb\n"}


def test_metadata_is_typed_by_yaml_1_2() -> None:
    parsed = parse(
        "version: v1\nentrypoint: script.sh\nmetadata:\n  eventId: '123'\n  eventVersion: 2\n"
        "  createdAt: 2025-08-13T00:00:00Z\n  1: one\n  mine: {a: no, b: 1:30, c: 0x10, d: ~, e: , f: FALSE, g: .5,"
        " h: -1e3, i: .inf, j: 1_000, k: 'null', l: 123456789012345678901234567890, m: 1e999, n: 2020-01-01}\n"
    )
    assert parsed.metadata == {
        "eventId": "123",
        "eventVersion": 2,
        "createdAt": "2025-08-13T00:00:00Z",
        "1": "one",
        "mine": {
            "a": "no", "b": "1:30", "c": "0x10", "d": None, "e": None, "f": False, "g": 0.5, "h": NumberLiteral("-1e3"),
            "i": ".inf", "j": "1_000", "k": "null", "l": 123456789012345678901234567890, "m": NumberLiteral("1e999"),
            "n": "2020-01-01",
        },
    }  # fmt: skip
    assert type(parsed.metadata["eventVersion"]) is int


def test_warnings_name_the_line_and_never_the_value() -> None:
    parsed = parse(
        "version: v1\nentrypoint: script.sh\napiToken: s3cret\nmetadata:\n  apiEndpoint: http://s3cret\n  jobId: j\n"
        "environment:\n  CRONIUM_WORK_DIR: /x\n"
    )
    assert parsed.metadata == {"jobId": "j"}
    assert sorted(warning[:16] for warning in parsed.warnings) == [f"manifest.yaml:{line}:" for line in (3, 5, 8)]
    assert "s3cret" not in repr(parsed)


@pytest.mark.parametrize("script", ["script.sh", "script.py", "script.js"])
def test_older_flat_form(script: str) -> None:
    text = "event_id: 7\nexecution_id: e\nevent_name: n\ninput: {a: 1}\nvariables: {v: x}\n"
    parsed = parse(text, ["manifest.yaml", script, "lib/script.py"])
    assert parsed == Manifest(
        version="v1",
        interpreter=None,
        entrypoint=script,
        metadata={"eventId": "7", "executionId": "e", "eventName": "n", "inputData": {"a": 1}},
        variables={"v": "x"},
    )


@pytest.mark.parametrize("members", [[], ["main.sh"], ["script.sh", "script.py"]])
def test_older_flat_form_needs_exactly_one_script(members: list[str]) -> None:
    assert refusal("event_id: 7\n", members).code == "manifest.entrypoint"


def test_find_manifest() -> None:
    assert find_manifest(["a", "manifest.yml", "manifest.yaml"]) == "manifest.yaml"
    assert find_manifest(["manifest.yml"]) == "manifest.yml"
    with pytest.raises(ManifestError) as caught:
        find_manifest(["job/manifest.yaml"])
    assert caught.value.code == "manifest.missing"
    with pytest.raises(ManifestError, match=r"^manifest\.yml:1: "):
        parse_manifest(b"a", name="manifest.yml", members=[])


SIZE = 200 << 10
HEAD = "version: v1\nentrypoint: script.sh\nmetadata:\n"
EXPENSIVE = {
    "alias bomb": "a: &a [x, x]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "merge bomb": HEAD + "  a: &a {x: y}\n  b:\n    <<: [*a, *a]\n",
    "deep list": HEAD + "  a: " + "[" * SIZE,
    "deep mapping": HEAD + "  a: " + "{a: " * (SIZE // 4),
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(600)),
    "deep dashes": HEAD + "  a:\n  " + "- " * (SIZE // 2),
    "deep questions": "? " * (SIZE // 2),
    "many keys": HEAD + "".join(f"  k{number}: v\n" for number in range(SIZE // 12)),
    "many items": HEAD + "  a: [" + "1," * (SIZE // 2) + "]",
    "many empty items": HEAD + "  a:\n" + "  -\n" * (SIZE // 4),
    "long word": HEAD + "  a: " + "x" * SIZE,
    "long number": HEAD + "  a: " + "9" * SIZE,
    "long float": HEAD + "  a: 0." + "9" * SIZE,
    "long key": HEAD + "  " + "k" * SIZE + ": a",
    "long quoted": HEAD + '  a: "' + "\\x41" * (SIZE // 4) + '"',
    "unclosed quote": HEAD + '  a: "' + "x " * (SIZE // 2),
    "many words": HEAD + "  a: " + "x " * (SIZE // 2),
    "many lines": HEAD + "  a: x" + "\n    y" * (SIZE // 6),
    "many empty lines": HEAD + "  a: x" + "\n" * SIZE + "    y",
    "comments": HEAD + "  a: b\n" + "#\n" * (SIZE // 2),
    "folded": HEAD + "  a: >\n" + "    x\n\n" * (SIZE // 7),
    "directives": "%A b\n" * (SIZE // 5) + "---\nversion: v1\n",
    "documents": "---\n" * (SIZE // 4),
    "colons": HEAD + "  a: " + ":" * SIZE,
    "brackets": HEAD + "  a: [" + "[]," * (SIZE // 3),
    "anchors": HEAD + "  a: &" + "x" * SIZE + " b",
    "tags": HEAD + "  a: !<" + "x" * SIZE + "> b",
    "wide characters": HEAD + "  a: " + "😀" * (SIZE // 4),
    "too large": "#" * (300 << 10),
}

PARSE_IN_LITTLE_MEMORY = """
import sys
sys.path[:0] = sys.argv[1:]
from cronium_runner.errors import ManifestError
from cronium_runner.manifest import parse_manifest
import yaml
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
text = sys.stdin.buffer.read()
idle = peak()
try:
    parse_manifest(text, members=["script.sh"])
except ManifestError:
    pass
print(peak() - idle)
"""


@pytest.mark.parametrize("name", EXPENSIVE)
def test_no_document_is_expensive(name: str) -> None:
    text = EXPENSIVE[name].encode()
    paths = [str(Path(manifest_module.__file__).parents[1]), str(Path(sys.modules["yaml"].__file__ or "").parents[1])]
    started = time.process_time()
    try:
        parse(text)
    except ManifestError as error:
        assert len(error.message) < 400  # noqa: PT017
    assert time.process_time() - started < 2
    done = subprocess.run(
        [sys.executable, "-I", "-c", PARSE_IN_LITTLE_MEMORY, *paths], input=text, stdout=subprocess.PIPE, check=True
    )
    assert int(done.stdout) < 32 << 10  # KiB; half of what is promised


def test_alias_bombs_have_their_code() -> None:
    assert refusal(EXPENSIVE["alias bomb"]).code == "manifest.alias"
    assert refusal(EXPENSIVE["merge bomb"]).code == "manifest.alias"
    assert refusal(EXPENSIVE["deep list"]).code == "manifest.too_large"
    assert refusal(EXPENSIVE["too large"]).code == "manifest.too_large"
    assert refusal(EXPENSIVE["many items"]).code == "manifest.too_large"


@settings(max_examples=500)
@example("-0")
@given(st.text(alphabet="ab01:-?[]{},&*!|>'\"%@` #\n\t\\xu~.=<", max_size=60))
def test_any_text_is_a_tree_or_a_manifest_error(text: str) -> None:
    try:
        tree = strict_yaml.parse(text.encode(), "manifest.yaml")
    except ManifestError as error:
        assert error.message.startswith("manifest.yaml:")  # noqa: PT017
    else:
        exactjson.dumps(strict_yaml.value(tree) if tree else None)


def test_importing_it_does_not_load_yaml() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; import cronium_runner.manifest; sys.exit('yaml' in sys.modules)"
    runner = str(Path(manifest_module.__file__).parents[1])
    assert subprocess.run([sys.executable, "-I", "-c", code, runner]).returncode == 0


def _texts() -> Iterator[str]:
    """All short values, plain and quoted, and whatever else may stand on a line, alone and beside another."""
    yield from (f"k: {''.join(word)}\n" for size in range(5) for word in product("a1./-: #", repeat=size))
    yield from (f'k: "{"".join(word)}"\n' for size in range(4) for word in product("a #:\"\\\té'", repeat=size))
    lines = [
        "",
        "# a: b",
        "#\t",
        " # a",
        "---",
        "...",
        "  a: b",
        "- a",
        "a:",
        "a:b",
        "%YAML 1.1",
        "a: b",
        "_: no",
        "a-b: c",
    ]
    lines += [
        "<<: a",
        "1: a",
        "a: b #c",
        "a: b ",
        "a: [b]",
        f"{'x' * 1100}: y",
        "a: &b",
        "\ta: b",
        "a: |",
        "  b",
        "é: a",
    ]
    yield from ("\n".join(chosen) + end for chosen in product(lines, repeat=2) for end in ("\n", "", "\r\n"))


def test_unmistakable_lines_are_read_as_yaml_reads_them() -> None:
    read = 0
    for text in _texts():
        quick = strict_yaml._plain_lines(text)
        if quick is not None:
            read += 1
            assert quick == strict_yaml._Builder("manifest.yaml").build(yaml.parse(text, Loader=yaml.SafeLoader)), text
    assert read > 500  # or this would show nothing


def test_the_manifest_of_a_plain_script_needs_no_yaml_parser() -> None:
    script = "from cronium_runner import manifest; manifest.parse_manifest({!r}, members=('a b.sh',)); import sys; "
    plain = b'# made by hand\n\nversion: v1\nentrypoint: "a b.sh"\ninterpreter: bash\ntimeout: 60\n'
    for text, is_loaded in ((plain, False), (plain + b"args: [a]\n", True)):
        program = script.format(text) + "print('yaml' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == f"{is_loaded}\n", text
