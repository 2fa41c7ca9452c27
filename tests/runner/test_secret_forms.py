"""Secrets as real tools print them: each was shown by the runner before its form was known."""

import base64
import json
import os
import shlex
import shutil
import subprocess

import pytest

from cronium_runner import masking, secret_forms
from cronium_runner.masking import Masker
from cronium_runner.wire import masks
from runner_process import Host

SPECIAL = "p@ss wörd/&\"quote'$x\\y<z>+1"
PRINTED: dict[str, str] = {
    "jq -r": """jq -rn --arg s "$S" '$s'""",
    "jq": """jq -n --arg s "$S" '{k: $s}'""",
    "jq -a": """jq -an --arg s "$S" '{k: $s}'""",
    "jq @uri": """jq -rn --arg s "a $S b" '$s | @uri'""",
    "jq @html": """jq -rn --arg s "$S" '$s | @html'""",
    "jq @sh": """jq -rn --arg s "$S" '$s | @sh'""",
    "json.dumps": """python3 -c 'import json, os; print(json.dumps([os.environ["S"]]))'""",
    "quote_plus": """python3 -c 'import os, urllib.parse as u; print(u.quote_plus("x " + os.environ["S"]))'""",
    "lower quote": """python3 -c 'import os, urllib.parse as u; print(u.quote(os.environ["S"]).lower())'""",
    "html.escape": """python3 -c 'import html, os; print(html.escape(os.environ["S"]))'""",
    "shlex.quote": """python3 -c 'import os, shlex; print(shlex.quote(os.environ["S"]))'""",
    "printf %q": """printf '%q\\n' "$S" """,
    "printf %q in C": """LC_ALL=C bash -c 'printf "%q\\n" "$S"'""",
    "declare -p": "declare -p S",
    "declare -p in C": "LC_ALL=C bash -c 'declare -p S'",
    "set -x": """exec 2>&1; set -x; : "$S" """,
    "xxd -p": """printf '%s' "0123456789012345$S" | xxd -p""",
    "xxd -p -u": """printf '%s' "$S" | xxd -p -u -c 256""",
    "od": """printf '%s' "0123456$S" | od -An -v -tx1""",
    "od joined": """printf '%s' "$S" | od -An -v -tx1 | tr -d ' \\n'""",
    "base64": """printf '%s' "some words in front of it: $S and behind" | base64""",
    "encodeURIComponent": "node -p 'encodeURIComponent(process.env.S)'",
    "JSON.stringify": "node -p 'JSON.stringify({k: process.env.S})'",
}  # fmt: skip


def masked(secret: object, text: bytes) -> bytes:
    masker = Masker([secret])
    return masker.feed(text) + masker.flush()


@pytest.fixture(scope="module", params=PRINTED)
def printed(request: pytest.FixtureRequest) -> bytes:
    """What the tool prints of SPECIAL."""
    command = PRINTED[request.param]
    tool = (
        shlex.split(command, posix=True)[0] if not command.startswith(("printf", "exec", "declare", "LC")) else "bash"
    )
    needed = {tool, *(word for word in ("xxd", "od", "base64") if f"| {word}" in command)}
    if missing := [word for word in needed if shutil.which(word) is None]:
        pytest.skip(f"there is no {' or '.join(missing)} here")
    environment = {"S": SPECIAL, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True)
    return done.stdout


def test_no_tool_prints_a_secret(printed: bytes) -> None:
    shown = masked(SPECIAL, printed)
    assert b"***" in shown, printed
    assert len(shown) < len(printed) - 20, (printed, shown)
    for cut in range(1, len(printed), 3):
        masker = Masker([SPECIAL])
        assert masker.feed(printed[:cut]) + masker.feed(printed[cut:]) + masker.flush() == shown


ACCOUNT = json.dumps(
    {
        "type": "service_account",
        "private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg/AQEF+AASC\nBKcwggSjAgEAAoIB\n-----END KEY-----\n",
        "nested": {"pin": 12345678, "list": ["first-entry"]},
        "short": "abc",
    }
)


def test_values_in_a_secret_that_is_json_are_masked() -> None:
    private_key = json.loads(ACCOUNT)["private_key"]
    assert masked('["first-entry", 12345678]', b"first-entry 12345678") == b"*** ***"
    assert masked('"caf\\u00e9-secret"', "café-secret".encode()) == b"***"
    assert masked(ACCOUNT, private_key.encode()) == b"***\n***\n***\n***\n"
    assert masked(ACCOUNT, b"first-entry 12345678 abc\n") == b"*** *** abc\n"
    assert masked(f"\n {ACCOUNT}\r\n", b"first-entry 12345678 abc\n") == b"*** *** abc\n"
    assert masked(ACCOUNT, b"id: " + json.dumps(private_key).encode()) == b'id: "***\\n***\\n***\\n***\\n"'


def test_a_huge_secret_is_not_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = '{"k": "first-entry"}'
    assert b"first-entry" in secret_forms.texts(secret)
    monkeypatch.setattr(secret_forms, "MAX_JSON", len(secret) - 1)
    assert secret_forms.texts(secret) == [secret.encode()]


def test_values_in_values_have_an_end() -> None:
    assert secret_forms.texts("a=" * 5000 + "inner-value")[-1].endswith(b"a=inner-value")
    nested = json.dumps(["DB_URL=first=second-value"])
    assert b"second-value" in secret_forms.texts(nested), "three levels are looked into"


def test_values_in_key_value_lines_are_masked() -> None:
    secret = '# for the shop\nDB_USER=shopkeeper\nexport DB_PASS="two \\"words\\""\n\nTINY=ab\nOTHER=\'single one\'\n'
    assert masked(secret, b'shopkeeper: two "words", single one, ab') == b"***: ***, ***, ab"
    assert masked("SPACED = some value\n", b"some value") == b"***"
    assert masked("  an indented line \nanother\n", b"an indented line") == b"***"
    assert masked('LINES="alpha\\nbeta"\n', b"alpha\\nbeta") == b"***", "as it stands there"
    assert masked("not=assigned\nother line\n", b"assigned; other line") == b"assigned; ***"


@pytest.mark.parametrize(
    ("secret", "form"),
    [
        ("caf\xe9-secret", rb"caf\u00E9-secret"),
        ("caf\xe9-secret", rb"caf\u00e9-secret"),
        ("path/to/it", rb"path\/to\/it"),
        ("this&that", rb"this\u0026that"),
        ("\U0001f600smile", rb"\ud83d\ude00smile"),
        ("a b/c&d=e", b"a+b%2fc%26d%3De"),
        ("it's quoted", b"it'\\''s quoted"),
        ("it's quoted", b"it&#039;s quoted"),
        ("caf\xe9-secret", b"caf&#xe9;-secret"),
        ("caf\xe9-secret", b"caf&#xE9;-secret"),
        ("with\x1bescape", b"with\\Eescape"),
        ("with\x1bescape", b"with\\eescape"),
        ('<b>"it\'s"</b>', b"&lt;b&gt;&quot;it&#39;s&quot;&lt;/b&gt;"),
        ("abcdefgh", b"6162636465666768"),
        ("jklmno", b"6A6B6C6D6E6F"),
        ("abcdefgh", b"61 62 63 64\n 65 66 67 68"),
        ("abcdefgh", b"616263\n6465666768"),
        ("abcdefgh", b"61 62 63 64\n65 66 67 68"),
        ("back\\slash", rb"back\u005cslash"),
        ("caf\xe9-secret", rb"caf\xc3\xa9-secret"),
        ("\ud800half-a-pair", "\ud800half-a-pair".encode("utf-8", "surrogatepass")),
    ],
)
def test_a_form_is_masked_byte_by_byte(secret: str, form: bytes) -> None:
    masker = Masker([secret])
    shown = b"".join(masker.feed(bytes([byte])) for byte in b"<" + form + b">") + masker.flush()
    assert shown == b"<***>"


def test_bytes_of_the_environment_that_are_no_utf_8_are_masked() -> None:
    assert masked(b"abc\xffdefgh".decode("utf-8", "surrogateescape"), b"<abc\xffdefgh>") == b"<***>"


@pytest.mark.parametrize(
    "name", ["TOKEN", "SECRET", "API_KEY", "SECRET_KEY", "ACCESS_KEY", "PRIVATE_KEY", "PASSWORD", "PASSPHRASE"]
)
def test_names_that_are_masked(name: str) -> None:
    for said in (name, name.lower(), f"DB_{name}"):
        assert masks.is_masked_name(said), said
    assert masks.is_masked_name(f"{name}_2") == name.startswith("PASS"), "these stand anywhere"
    assert masks.is_masked_name("pin", ("p?n",))
    assert not masks.is_masked_name(name, ())


def test_short_values_of_secrets_and_of_masked_names_are_told() -> None:
    variables = {"TOKEN": "ab", "PLAIN": "ab", "A_TOKEN": "long-enough"}
    assert sorted(masks.too_short({"S": 12345, "T": "123456"}, variables, masks.DEFAULT_NAMES)) == ["S", "TOKEN"]


def test_names_without_a_prefix_are_masked(host: Host) -> None:
    script = host.script("cronium.getVariable token; cronium.getVariable TOKENS\n")
    given = [word for name in ("token", "TOKENS") for word in ("--var", f"{name}={name}-value")]
    assert host.run_json(script, *given)["stdout"]["text"] == "***\nTOKENS-value\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_the_line_end_of_a_file_is_no_part_of_the_secret(host: Host, end: str) -> None:
    (host.folder / "secret").write_bytes(b"correct-horse" + end.encode())
    script = host.script('s=$(cronium.getVariable S; echo .); echo "${#s}"; echo correct-horse\n')
    result = host.run_json(script, "--secret", f"S=@{host.folder / 'secret'}")
    assert result["stdout"]["text"] == f"{len('correct-horse') + 2}\n***\n"


HANDING_BACK = """
s=$(cronium.getVariable S)
cronium.output token "$s"; cronium.output plain word; cronium.output --json list "[1, {\\"at\\": \\"x $s\\"}]"
cronium.output --json "named" "{\\"$s\\": 1}"
cronium.setVariable COPY "$s"; cronium.setVariable NEW_TOKEN fresh-token; cronium.setVariable A b
cronium.setVariable S changed-secret
"""


def test_what_is_handed_back_is_exact_for_the_run_and_listed(host: Host) -> None:
    options = ["--secret", "S", "--execution-id", "back"]
    result = host.run_json(host.script(HANDING_BACK), *options, env={"S": "correct-horse"})
    assert result["output"]["token"] == result["variables"]["COPY"] == "correct-horse"
    assert result["variables"]["NEW_TOKEN"] == "fresh-token"
    assert sorted(result["masked"]) == [
        "output.list.1.at", "output.named", "output.token", "variables.COPY", "variables.NEW_TOKEN", "variables.S",
    ]  # fmt: skip
    assert "correct-horse" not in "".join(result["masked"])
    for words in (["status", "back", "--json"], ["list", "--json"], ["attach", "back", "--json"]):
        told = host.run(*words).stdout
        assert b"correct-horse" not in told
        assert b"fresh-token" not in told
        assert b'"token":"***","plain":"word","list":[1,{"at":"***"}],"named":"***"' in told
        assert b'"A":"b"' in told
    tested = host.run("test", host.script(HANDING_BACK), "--secret", "S", env={"S": "correct-horse"}).stderr
    assert b"correct-horse" not in tested
    assert b"fresh-token" not in tested
    assert b'"token":"***"' in tested


def test_a_result_without_secrets_lists_nothing(host: Host) -> None:
    assert "masked" not in host.run_json(host.script("cronium.output a b; cronium.setVariable C d\n"))


def units(secrets: list[object]) -> int:
    """What making the forms costs: about a microsecond for each place of each form."""
    return sum(len(form.units) for form in secret_forms.forms(secrets))


def test_the_forms_of_long_secrets_are_bounded() -> None:
    lines = "\n".join(f"{number:032x}-some-line" for number in range(1500))
    assert units(["ghp_" + "0123456789" * 4]) <= 320
    assert units([lines]) <= 400_000
    many = ["\n".join(f"{number:04x}{line:028x}-some-line" for line in range(500)) for number in range(8)]
    assert units(list(many)) <= 64 * 1024 * 8 + sum(map(len, many)) * 4 + 8 * 600
    anchors = [len(form.anchors) for form in secret_forms.forms([SPECIAL, "<'/&>" * 8])]
    assert max(anchors) <= secret_forms.MAX_CHOICES, "of which each is searched for"
    assert units([lines.replace("\n", " ")[:5000]]) <= 5000 * 4 + 10, "as it is, and in base64"
    assert len(secret_forms.forms(["".join(f"{number:07d}" for number in range(40_000))])) <= 20, "280 KB: as it is"


def test_a_short_secret_has_its_forms_beside_long_ones() -> None:
    long: list[object] = ["\n".join(f"{number:024x}{at:02}" for at in range(1000)) for number in range(8)]
    masker = Masker([*long, SPECIAL])
    assert masker.feed(SPECIAL.encode().hex().encode() + b" ") == b"*** "


def test_base64_of_a_long_secret_is_masked() -> None:
    secret = "".join(f"{number:07d}" for number in range(9000))
    for end in ("", "\n"):
        shown = masked(secret + end, base64.b64encode(secret.encode()))
        assert len(shown) < 200
        assert set(shown.decode()) & set("*") == {"*"}


def test_what_is_too_short_for_a_secret_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what holds it as it is: a job that only hands back a few values makes no forms."""
    made: list[list[object]] = []

    def search(secrets: list[object]) -> masking._Search:
        made.append(secrets)
        return masking._Search(secret_forms.forms(secrets))

    monkeypatch.setattr(masking, "_last", None)
    monkeypatch.setattr(masking, "_search_for", search)
    token, password = "0123456789" * 4, "hunter2-hunter"
    masker = Masker([token, password])
    assert not masker.finds_in(b'{"a": 1}')
    assert masker.finds_in(b'{"a": "hunter2-hunter"}')
    assert made == []
    assert masker.finds_in(password.encode().hex().encode())
    assert not masker.finds_in(b"nothing of it here")
    assert made == [[password], [password]]
    assert masker.finds_in(token.encode().hex().encode())
    assert made[2:] == [[token, password]]
