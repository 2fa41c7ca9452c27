"""One suite for every helper client: the same calls, from real scripts through the real runner, mean the same.

A case is a list of calls. Each client's script makes them in its own language and prints a line for each: `ok` with
the value as JSON, or `error` with the exit status a command line would have had, and the message.
"""

import json
import shlex
from typing import Any

import pytest

from helper_clients import Client, Run

Step = tuple[Any, ...]  # ("setVariable", "NAME", value)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def shell_step(helper: str, *arguments: Any) -> str:
    """What has a value sends it as JSON on standard input, because an argument could not carry a large one."""
    words = [f"cronium.{helper}"]
    if helper == "setCondition":
        words.append("true" if arguments[0] else "false")
        return f"step {shlex.join(words)}"
    if helper in ("progress", "summary"):
        return f"step {shlex.join([*words, '--', *map(str, arguments)])}"
    words.append("--json")
    if helper == "incrementVariable" and len(arguments) == 2:
        return f"step {shlex.join([*words, '--', arguments[0], compact(arguments[1])])}"
    if helper == "output" or helper == "setVariable":
        *key, value = arguments
        words += ["--", *key] + (["-"] if helper == "output" and key else [])
        return f"step {shlex.join(words)} <<'END OF VALUE'\n{compact(value)}\nEND OF VALUE"
    if helper == "executeToolAction":
        return f"step {shlex.join([*words, '--', *arguments[:2], *map(compact, arguments[2:])])}"
    if helper == "getVariable" and len(arguments) == 2:
        words += ["--default", compact(arguments[1])]
    return f"step {shlex.join([*words, '--', *arguments[: 2 if helper == 'appendVariable' else 1]])}"


SHELL = """
step() {
  if answer=$("$@" 2>"$CRONIUM_WORK_DIR/err"); then printf 'ok\\t%s\\n' "${answer:-null}"
  else printf 'error\\t%s\\t%s\\n' $? "$(head -1 "$CRONIUM_WORK_DIR/err")"; fi
}
"""

PYTHON = """
import json
def step(name, *arguments):
    try:
        print("ok\\t" + json.dumps(getattr(cronium, name)(*arguments), ensure_ascii=False, separators=(",", ":")))
    except cronium.CroniumError as error:
        print("error\\t%d\\tError: %s" % (2 if error.code == "usage" else 1, error))
"""

NODE = """
const show = (value) => JSON.stringify(value === undefined ? null : value);
async function step(name, ...words) {
  try { console.log("ok\\t" + show(await cronium[name](...words))); }
  catch (error) { console.log(`error\\t${error.code === "usage" ? 2 : 1}\\tError: ${error.message}`); }
}
"""


def script(client: Client, steps: list[Step]) -> str:
    if client.extension == "sh":
        return SHELL + "".join(shell_step(*step) + "\n" for step in steps)
    if client.extension == "py":
        return PYTHON + "".join(f"step(*json.loads({compact(list(step))!r}))\n" for step in steps)
    return (
        NODE
        + "(async () => {"
        + "".join(f"await step(...JSON.parse({json.dumps(compact(list(step)))}));\n" for step in steps)
        + "})();\n"
    )


def lines(result: dict[str, Any]) -> list[Any]:
    """The values of the calls that went well, and `(status, message)` of the others."""
    assert result["stderr"]["text"] == ""
    assert (result["exitCode"], result["state"]) == (0, "succeeded")
    found: list[Any] = []
    for line in result["stdout"]["text"].removesuffix("\n").split("\n"):
        kind, *rest = line.split("\t")
        found.append(json.loads(rest[0]) if kind == "ok" else (int(rest[0]), rest[1]))
    return found


VALUES: list[Any] = [
    "text", "", " ", "-", "--json", "two\nlines\n", "ü😀\u2028", 'quote " back \\ tab\t', "null", "5", "[1]",
    "$(id) `id` 'x'",
    0, -5, 1.5, True, False, None, [], {}, [1, [2, {"k": None}]], {"a.b": {"ü": "x"}, "": 1, "__proto__": 2},
]  # fmt: skip


def test_values_come_back_as_they_went(client: Client, run: Run) -> None:
    steps: list[Step] = []
    for number, value in enumerate(VALUES):
        steps += [("setVariable", f"V{number}", value), ("getVariable", f"V{number}")]
    result = run(client, script(client, steps))
    assert lines(result)[::2] == [None] * len(VALUES)
    assert lines(result)[1::2] == VALUES
    assert result["variables"] == {f"V{number}": value for number, value in enumerate(VALUES)}


def test_input(client: Client, run: Run) -> None:
    given = {"config": {"hosts": ["h0", {"port": 22}]}, "config.hosts": "exact", "n": None, "-k": "dash"}
    keys = ["config.hosts", "config.hosts.0", "config.hosts.1.port", "n", "-k"]
    missing = ["nope", "config.hosts.2", "n.x"]
    steps: list[Step] = [("input",), *(("input", key) for key in keys + missing)]
    assert lines(run(client, script(client, steps), "--input", compact(given))) == [
        given, "exact", "h0", 22, None, "dash", *((1, f"Error: input key '{key}' not found") for key in missing),
    ]  # fmt: skip


def test_no_input(client: Client, run: Run) -> None:
    assert lines(run(client, script(client, [("input",), ("input", "x")]))) == [
        None,
        (1, "Error: input key 'x' not found"),
    ]


def test_output(client: Client, run: Run) -> None:
    steps: list[Step] = [("output", {"a": 1}), ("output", "b", [2]), ("output", "a", "x"), ("output", "-k", None)]
    result = run(client, script(client, steps))
    assert lines(result) == [None] * 4
    assert result["output"] == {"a": "x", "b": [2], "-k": None}


@pytest.mark.parametrize("whole", ["text", [1], None, 0, {"k": {}}])
def test_whole_output(client: Client, run: Run, whole: Any) -> None:
    assert run(client, script(client, [("output", {"before": 1}), ("output", whole)]))["output"] == whole


def test_output_that_is_no_object_keeps_its_value(client: Client, run: Run) -> None:
    result = run(client, script(client, [("output", [1]), ("output", "k", 1)]))
    status, message = lines(result)[1]
    assert (status, message[:7]) == (1, "Error: ")
    assert result["output"] == [1]


def test_variables(client: Client, run: Run) -> None:
    steps: list[Step] = [
        ("getVariable", "GIVEN"), ("getVariable", "X", {"d": 1}), ("getVariable", "GIVEN", "d"),
        ("setVariable", "", 1), ("setVariable", "GIVEN", "new"), ("getVariable", "GIVEN"),
    ]  # fmt: skip
    result = run(client, script(client, steps), "--var", "GIVEN=old value", "--var", "OTHER=1")
    assert lines(result) == ["old value", {"d": 1}, "old value", (2, "Error: a variable needs a name"), None, "new"]
    assert result["variables"] == {"GIVEN": "new"}


def test_event(client: Client, run: Run) -> None:
    given = {"id": "e7", "name": "Nightly", "type": "manual", "trigger": "t", "version": 3, "user": "u",
             "server": {"name": "s", "port": 22}, "metadata": {"region": "eu"}, "runLocation": "REMOTE"}  # fmt: skip
    fields = ["id", "eventId", "name", "eventName", "type", "eventType", "trigger", "version", "server.name",
              "server.port", "user", "userId", "metadata", "metadata.region", "runLocation", "nope"]  # fmt: skip
    result = run(
        client, script(client, [("event",), *(("event", field) for field in fields)]), "--event", compact(given)
    )
    event, *values = lines(result)
    assert {"executionId", "jobId", "startTime", "environment"} < set(event)
    assert {**event, **given} == event
    assert {name: event[name] for name in ("eventId", "eventName", "eventType", "userId")} == {
        "eventId": "e7", "eventName": "Nightly", "eventType": "manual", "userId": "u",
    }  # fmt: skip
    assert values == ["e7", "e7", "Nightly", "Nightly", "manual", "manual", "t", 3, "s", 22, "u", "u",
                      {"region": "eu"}, "eu", "REMOTE", (1, "Error: event field 'nope' not found")]  # fmt: skip


@pytest.mark.parametrize("condition", [True, False])
def test_condition(client: Client, run: Run, condition: bool) -> None:
    steps: list[Step] = [("getCondition",), ("setCondition", not condition), ("setCondition", condition)]
    result = run(client, script(client, [*steps, ("getCondition",)]))
    assert (lines(result), result["condition"]) == ([None, None, None, condition], condition)


def test_progress_and_summary(client: Client, run: Run) -> None:
    steps: list[Step] = [("progress", 10), ("summary", "-"), ("progress", 99.5, "nearly"), ("summary", "# Done\n- ü"),
                         ("progress", 101)]  # fmt: skip
    result = run(client, script(client, steps))
    assert lines(result) == [None] * 4 + [(2, "Error: '101' is no number from 0 to 100")]
    assert (result["progress"], result["summary"]) == ({"percent": 99.5, "text": "nearly"}, "# Done\n- ü")


def test_changes_of_a_variable(client: Client, run: Run) -> None:
    steps: list[Step] = [
        ("incrementVariable", "N"), ("incrementVariable", "N", 9007199254740990), ("incrementVariable", "N", -1),
        ("appendVariable", "T", "a"), ("appendVariable", "T", " -b"), ("getVariable", "T"),
        ("incrementVariable", "N", "x"),
        ("deleteVariable", "GIVEN"), ("getVariable", "GIVEN", 0), ("deleteVariable", "GIVEN"), ("deleteVariable", "T"),
    ]  # fmt: skip
    result = run(client, script(client, steps), "--var", "GIVEN=old")
    assert lines(result) == [
        1, 9007199254740991, 9007199254740990, None, None, "a -b",
        (2, "Error: '\"x\"' is no number"), None, 0, (1, "Error: variable 'GIVEN' not found"), None,
    ]  # fmt: skip
    assert result["variables"] == {"N": 9007199254740990, "GIVEN": None}


@pytest.mark.parametrize("mode", ["bundled"], indirect=True)
def test_changes_that_cannot_be(client: Client, run: Run) -> None:
    """In API mode it is the platform that refuses: tests/runner/test_api_changes.py."""
    steps: list[Step] = [("setVariable", "T", "a"), ("incrementVariable", "T"), ("incrementVariable", "N"),
                         ("appendVariable", "N", "x")]  # fmt: skip
    result = run(client, script(client, steps))
    assert lines(result) == [
        None, (1, "Error: variable 'T' is no number"), 1, (1, "Error: variable 'N' is no text"),
    ]  # fmt: skip
    assert result["variables"] == {"T": "a", "N": 1}


def test_parallel_changes_lose_nothing(shell: Client, run: Run) -> None:
    calls = "for n in $(seq 50); do cronium.incrementVariable N 2 & cronium_append_variable T x & done; wait"
    result = run(shell, calls)
    assert result["variables"] == {"N": 100, "T": "x" * 50}
    assert sorted(map(int, said(result).split())) == list(range(2, 101, 2))


def test_large_values(client: Client, run: Run) -> None:
    text = "ü" * (1 << 19) + "x"  # one byte over 1 MiB
    read = {
        "sh": 'v=$(cronium.getVariable BIG; echo .); printf %s "$v" | wc -c',
        "py": 'print(len(cronium.getVariable("BIG").encode()) + 2)',
        "js": 'process.on("exit", () => console.log(Buffer.byteLength(cronium.getVariable("BIG")) + 2))',
    }[client.extension]
    result = run(client, script(client, [("setVariable", "BIG", text), ("output", {"big": text})]) + read)
    assert result["stdout"]["text"].splitlines()[-1] == str((1 << 20) + 1 + 2)
    assert result["variables"] == {"BIG": text}
    assert result["output"] == {"big": text}


INTEGERS = "[9007199254740993,-12345678901234567890123,0]"


def test_integers_keep_all_their_digits(client: Client, run: Run) -> None:
    copy = {
        "sh": "cronium.input | cronium.setVariable N",
        "py": 'cronium.setVariable("N", cronium.input())',
        "js": 'cronium.setVariable("N", cronium.input())',
    }[client.extension]
    result = run(client, copy, "--input", INTEGERS)
    assert result["stderr"]["text"] == ""
    assert compact(result["variables"]["N"]) == INTEGERS


PARALLEL = {
    "sh": """
for p in 1 2 3 4 5 6 7 8; do (for n in $(seq 20); do cronium.setVariable "P$p.$n" "$n" & done; wait) & done; wait
""",
    "py": """
import os, threading
children = []
for p in range(1, 9):
    child = os.fork()
    if child == 0:
        threads = [threading.Thread(target=cronium.setVariable, args=("P%d.%d" % (p, n), str(n))) for n in range(1, 21)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
""",
    "js": """
const { fork } = require("child_process");
if (process.argv[2]) {
  Promise.all([...Array(20).keys()].map(async (n) => cronium.setVariable(`P${process.argv[2]}.${n + 1}`, `${n + 1}`)));
} else {
  for (let p = 1; p <= 8; p++) fork(__filename, [String(p)]).on("exit", (status) => { process.exitCode |= status; });
}
""",
}


def test_eight_processes_with_twenty_parallel_writes_each_lose_nothing(client: Client, run: Run) -> None:
    result = run(client, PARALLEL[client.extension])
    assert result["stderr"]["text"] == ""
    assert result["exitCode"] == 0
    assert result["variables"] == {f"P{p}.{n}": str(n) for p in range(1, 9) for n in range(1, 21)}


def test_a_hundred_parallel_writers_of_the_output_lose_nothing(shell: Client, run: Run) -> None:
    result = run(shell, 'for n in $(seq 100); do cronium.output "k$n" "$n" & done; wait')
    assert result["stderr"]["text"] == ""
    assert result["output"] == {f"k{n}": str(n) for n in range(1, 101)}


def test_a_write_that_fails_says_so(client: Client, run: Run) -> None:
    away = {
        "sh": 'cd "$CRONIUM_WORK_DIR"; mv .cronium away; echo >.cronium\n',
        "py": 'import os; w = os.environ["CRONIUM_WORK_DIR"] + "/"; os.rename(w + ".cronium", w + "away"); '
        'open(w + ".cronium", "w").close()\n',
        "js": 'const f = require("fs"), w = process.env.CRONIUM_WORK_DIR; f.renameSync(w + "/.cronium", w + "/away"); '
        'f.writeFileSync(w + "/.cronium", "");\n',
    }[client.extension]
    result = run(client, away + script(client, [("setVariable", "V", 1), ("getVariable", "V", 0)]))
    (status, message), kept = lines(result)
    assert (status, kept) == (1, 0)
    assert message.startswith("Error: variables.json could not be written: ")


def test_tool_actions(client: Client, run: Run, mode: str) -> None:
    calls: list[tuple[Any, ...]] = [("echo", "say", {"n": [1, "ü"]}), ("echo", "fail"), ("none", "x")]
    result = run(client, script(client, [("executeToolAction", *call) for call in calls]))
    if mode == "bundled":
        sentence = "Error: tool actions need the platform: run the job in API mode (`cronium run --mode api`)"
        assert lines(result) == [(1, sentence)] * 3
    else:
        done, failed, unknown = lines(result)
        assert done == {"action": "say", "params": {"n": [1, "ü"]}}
        assert failed == (1, "Error: 'echo' failed: it broke")
        assert unknown == (1, "Error: 'none' failed: no tool of this name is configured")


def test_outside_a_job(client: Client, run: Run) -> None:
    unset = {"sh": "unset CRONIUM_SOCKET\n", "py": 'import os; del os.environ["CRONIUM_SOCKET"]\n',
             "js": "delete process.env.CRONIUM_SOCKET;\n"}[client.extension]  # fmt: skip
    ((status, message),) = lines(run(client, unset + script(client, [("input",)])))
    assert status == 1
    assert message.endswith("works only inside a job: CRONIUM_SOCKET is not set")


# What only programs have: bytes, words, standard input, exit statuses.


def said(result: dict[str, Any]) -> str:
    assert result["stderr"]["text"] == ""
    return str(result["stdout"]["text"])


def test_strings_are_printed_raw_and_the_rest_compact(shell: Client, run: Run) -> None:
    given = '{"s": "a\\n\\"b\\"", "o": {"k": [1.10, 12345678901234567890123.10, 1e5, -0]}, "ü": "😀"}'
    calls = "\n".join(f"cronium.input {words}" for words in ("s", "--json s", "o", "o.k.1", "ü", ""))
    result = run(shell, calls, "--input", given)
    assert said(result) == (
        'a\n"b"\n"a\\n\\"b\\""\n{"k":[1.10,12345678901234567890123.10,1e5,-0]}\n12345678901234567890123.10\n😀\n'
        '{"s":"a\\n\\"b\\"","o":{"k":[1.10,12345678901234567890123.10,1e5,-0]},"ü":"😀"}\n'
    )


def test_numbers_go_through_variables_and_files_as_written(shell: Client, run: Run) -> None:
    calls = """
cronium.setVariable --json N 12345678901234567890123.10; cronium.getVariable N
echo 1.50 | cronium.setVariable M; cronium.getVariable M
cronium.output --json price 9.90; cd "$CRONIUM_WORK_DIR/.cronium" && cat output.json variables.json
"""
    assert said(run(shell, calls)) == (
        '12345678901234567890123.10\n1.50\n{"data":{"price":9.90}}{"N":12345678901234567890123.10,"M":1.50}'
    )


def test_a_helper_inside_while_read_does_not_eat_the_loop(shell: Client, run: Run) -> None:
    loop = """
printf 'a\\nb\\nc\\n' | while read -r line; do
  cronium.setVariable "V$line" "$line"; cronium.getVariable "V$line"; cronium.input >/dev/null; cronium.output k v
  cronium.event id >/dev/null; cronium.setCondition yes
done
"""
    result = run(shell, loop)
    assert said(result) == "a\nb\nc\n"
    assert result["variables"] == {"Va": "a", "Vb": "b", "Vc": "c"}


def test_values_from_standard_input(shell: Client, run: Run) -> None:
    calls = """
echo text | cronium.setVariable A; echo '{"k": [1]}' | cronium.setVariable B; printf '' | cronium.setVariable C
echo '"s"' | cronium.setVariable --json D; cronium.setVariable E; cronium.setVariable F -
echo '{"whole": 1}' | cronium.output; echo '[1]' | cronium.output raw -; echo '[1]' | cronium.output --json parsed -
"""
    result = run(shell, calls)
    assert said(result) == ""
    assert result["variables"] == {"A": "text", "B": {"k": [1]}, "C": "", "D": "s", "E": "", "F": "-"}
    assert result["output"] == {"whole": 1, "raw": "[1]", "parsed": [1]}


def test_names_with_underscores(shell: Client, run: Run) -> None:
    calls = """
cronium_set_variable A 1 && cronium_setVariable B 2 && cronium_get_variable A && cronium_getVariable B
cronium_input k && cronium_event name && cronium_output k v && cronium_set_condition on && cronium_setCondition off
type -P cronium_input cronium.input | sed 's,/[^/]*$,,' | uniq | wc -l
"""
    result = run(shell, calls, "--input", '{"k":"in"}', "--event", '{"name":"N"}')
    assert said(result) == "1\n2\nin\nN\n1\n"
    assert (result["output"], result["condition"]) == ({"k": "v"}, False)


@pytest.mark.parametrize(
    ("call", "status", "error"),
    [
        ("cronium.input x", 1, "Error: input key 'x' not found\n"),
        ("cronium.getVariable X", 1, "Error: variable 'X' not found\n"),
        ("cronium.event x", 1, "Error: event field 'x' not found\n"),
        ("cronium.output --json k {", 1, "Error: the value cannot be used: not JSON"),
        ("cronium.output --json NaN", 1, "Error: the value cannot be used: not JSON"),
        (r"printf '\xff' | cronium.output", 1, "Error: standard input is not UTF-8 at byte 0\n"),
        (r"cronium.setVariable V $'\xff'", 1, "Error: an argument is not UTF-8 at byte 0\n"),
        ("head -c 200000 /dev/zero | tr '\\0' '[' | cronium.output", 1, "Error: "),
        (
            "cronium.getVariable",
            2,
            "Error: cronium.getVariable needs more arguments\nUsage: cronium.getVariable [--json]",
        ),
        ("cronium_input --nope", 2, "Error: cronium_input has no option '--nope'"),
        (
            "cronium.setCondition maybe",
            2,
            "Error: 'maybe' is neither true nor false\nUsage: cronium.setCondition true|false",
        ),
    ],
)
def test_failures_leave_standard_output_empty(shell: Client, run: Run, call: str, status: int, error: str) -> None:
    result = run(shell, f"{call}\nexit $?")
    assert (result["exitCode"], result["stdout"]["text"]) == (status, "")
    assert result["stderr"]["text"].startswith(error)
    assert (result["output"], result["variables"]) == (None, {})


def test_a_secret_can_be_read_and_is_in_no_file(shell: Client, run: Run) -> None:
    calls = """
test "$(cronium.getVariable PASS)" = first-word || exit 3
cronium.setVariable PASS another-word
test "$(cronium.getVariable PASS)" = another-word || exit 4
grep -r -e first-word -e another-word "$CRONIUM_WORK_DIR/.cronium" >&2 && exit 5
exit 0
"""
    result = run(shell, calls, "--secret", "PASS", PASS="first-word")
    assert (result["exitCode"], result["stderr"]["text"]) == (0, "")
    assert result["variables"] == {"PASS": "***"}
