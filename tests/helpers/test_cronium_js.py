"""cronium.js under the Node of this machine: plain values at once, and a script that notices nothing else."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cronium_runner.values import BundledValues
from helper_clients import Call, helper_folder, record, supervisor, with_grammar

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no node on this machine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return helper_folder(tmp_path / "helpers")


def run(
    folder: Path, script: str, *options: str, socket: str = "", name: str = "script.js"
) -> "subprocess.CompletedProcess[str]":
    path = folder.parent / name
    path.write_text(script, encoding="utf-8")
    env = {**os.environ, "NODE_PATH": str(folder), "NODE_OPTIONS": f"--require {folder}/cronium.js"}
    env["CRONIUM_SOCKET"] = socket
    return subprocess.run(
        ["node", *options, str(path), "a"], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def went_well(ran: "subprocess.CompletedProcess[str]") -> str:
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout


CALLS = r"""
const assert = require("assert");
(async () => {
  assert.strictEqual(cronium.setVariable("S", "text"), undefined);
  assert.strictEqual(await cronium.get_variable("S"), "text");
  const value = { "ü": [1, 2.5, null, true, 12345678901234567890123n], "12345678901234567890": "1234567890123456789",
                  'q"\\': "\\\"-12345678901234567890" };
  cronium.set_variable("D", value);
  assert.deepStrictEqual(cronium.getVariable("D"), value);
  assert.strictEqual(cronium.getVariable("NOPE"), null);
  assert.strictEqual(cronium.getVariable("NOPE", 5), 5);
  assert.deepStrictEqual(cronium.input(), { k: { l: [7, 9007199254740993n, 1e400 === Infinity ? 1.5 : 0] } });
  assert.strictEqual(cronium.input("k.l.0"), 7);
  cronium.output("x".repeat(3000000));
  cronium.output({ a: 1 }); cronium.output("b", [2]); cronium.output("-", "-");
  assert.strictEqual(cronium.event().name, "N");
  assert.strictEqual(cronium.event("user"), null);
  cronium.setCondition(true); cronium.set_condition(false);
  const fails = (call, code, message) => assert.throws(call, (error) => {
    assert(error instanceof cronium.CroniumError && error instanceof Error);
    return error.code === code && (!message || error.message === message);
  });
  fails(() => cronium.input("nope"), "input.key_not_found", "input key 'nope' not found");
  fails(() => cronium.setVariable("", 1), "usage", "a variable needs a name");
  const ring = []; ring.push(ring);
  let deep = 1; for (let i = 0; i < 2000; i++) deep = [deep];
  for (const bad of [NaN, [Infinity], undefined, () => 1, "\ud800", ring, deep]) {
    fails(() => cronium.setVariable("V", bad), "value.invalid");
  }
  fails(() => cronium.input("\udc00"), "value.invalid");
  const wrong = [() => cronium.output(), () => cronium.output(1, 2), () => cronium.input(1)];
  for (const call of wrong) assert.throws(call, TypeError);
  assert.strictEqual(require("cronium"), cronium);
  console.log("done");
})();
"""


def test_every_call(tmp_path: Path, folder: Path) -> None:
    given = {"k": {"l": [7, 9007199254740993, 1.5]}}
    values = BundledValues(str(tmp_path), input=given, event={"name": "N"})
    with supervisor(tmp_path, with_grammar(values)) as socket:
        assert went_well(run(folder, CALLS, socket=socket)) == "done\n"
    assert values.output == {"a": 1, "b": [2], "-": "-"}
    assert values.condition is False
    assert set(values.changed_variables) == {"S", "D"}


def test_nobody_there(tmp_path: Path, folder: Path) -> None:
    script = "try { cronium.input() } catch (error) { console.log(error.code, error.message) }"
    nobody = "supervisor.gone cronium works only inside a job: CRONIUM_SOCKET is not set\n"
    assert went_well(run(folder, script)) == nobody
    assert went_well(run(folder, script, socket="/nowhere")) == (
        "supervisor.gone no supervisor answers at CRONIUM_SOCKET: ENOENT\n"
    )
    for head in (b"", b"X", record(b"O", b"1")):
        with supervisor(tmp_path, lambda call, head=head: call.send(head)) as socket:  # type: ignore[misc]
            ran = run(folder, script, socket=socket)
        assert went_well(ran) == "supervisor.gone the supervisor of this execution is gone\n"


def test_it_has_no_standard_input_and_ignores_what_it_does_not_know(tmp_path: Path, folder: Path) -> None:
    def answer(call: Call) -> None:
        assert call.stdin_chunks() == []
        call.send(record(b"?", b"x"), record(b"O", b"[1"), record(b"O", b"]"), record(b"X", b"\0"))

    with supervisor(tmp_path, answer) as socket:
        assert went_well(run(folder, "console.log(cronium.input())", socket=socket)) == "[ 1 ]\n"


def test_the_script_runs_as_if_started_directly(folder: Path) -> None:
    script = """
console.log(require.main === module, __filename, process.argv.slice(1), Object.keys(globalThis), process.execArgv);
console.log(process.moduleLoadList.includes("NativeModule worker_threads"));
throw new Error("as ever");
"""
    ran = run(folder, script)
    alone = subprocess.run(
        ["node", str(folder.parent / "script.js"), "a"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == (alone.stdout, alone.stderr, alone.returncode)
    assert ran.returncode == 1


@pytest.mark.parametrize(
    ("ending", "status"),
    [("", 0), ("process.exit(7)", 7), ("process.exitCode = 3", 3), ("setTimeout(() => process.exit(4), 20)", 4),
     ("process.on('exit', () => { cronium.setVariable('AT_EXIT', 1); process.exitCode = 5; })", 5)],
)  # fmt: skip
@pytest.mark.parametrize("begun", ["cronium.input();", ""])
def test_the_process_ends_when_the_script_does(
    tmp_path: Path, folder: Path, ending: str, status: int, begun: str
) -> None:
    values = BundledValues(str(tmp_path))
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(folder, f"{begun}{ending}", socket=socket)
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "", "")
    assert values.changed_variables == ({"AT_EXIT": 1} if "AT_EXIT" in ending else {})


def test_workers_of_the_script(tmp_path: Path, folder: Path) -> None:
    script = """
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");
if (isMainThread) {
  cronium.setVariable("MAIN", 1);
  for (const n of [1, 2, 3]) {
    new Worker(__filename, { workerData: n }).on("message", (text) => console.log(text, cronium.getVariable(`W${n}`)));
  }
} else {
  cronium.setVariable(`W${workerData}`, workerData);
  parentPort.postMessage("hello");
}
"""
    values = BundledValues(str(tmp_path))
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(folder, script, socket=socket)
    assert sorted(went_well(ran).splitlines()) == ["hello 1", "hello 2", "hello 3"]
    assert values.changed_variables == {"MAIN": 1, "W1": 1, "W2": 2, "W3": 3}


def test_ecmascript_modules_have_the_global(tmp_path: Path, folder: Path) -> None:
    values = BundledValues(str(tmp_path), input="in")
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(folder, "console.log(await cronium.input());", socket=socket, name="script.mjs")
    assert went_well(ran) == "in\n"


def test_a_script_may_have_its_own_cronium(folder: Path) -> None:
    assert went_well(run(folder, "const cronium = { mine: 1 }; console.log(cronium.mine)")) == "1\n"


def test_options_of_the_script_are_not_options_of_our_worker(tmp_path: Path, folder: Path) -> None:
    """As a module, our worker would have no `require` and would leave the script waiting for ever."""
    values = BundledValues(str(tmp_path), input="in")
    with supervisor(tmp_path, with_grammar(values)) as socket:
        evaluate = ["--input-type=module", "-e", "console.log(cronium.input())"]
        assert went_well(run(folder, "", *evaluate, socket=socket)) == "in\n"


def test_promises_return_promises_and_add_nothing_to_values(tmp_path: Path, folder: Path) -> None:
    script = """
const { promises } = require("cronium");
const called = promises.setVariable("V", { a: 1 });
console.log(called instanceof Promise, Object.keys(promises).includes("get_variable"), promises.CroniumError);
called.then(() => promises.get_variable("V")).then((value) => {
  console.log(Object.getOwnPropertyNames(value), typeof value.then, typeof "".then, typeof Object.prototype.then);
  return promises.input("nope");
}).catch((error) => console.log(error.code));
"""
    values = BundledValues(str(tmp_path))
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(folder, script, socket=socket)
    assert went_well(ran).splitlines() == [
        "true true undefined", "[ 'a' ] undefined undefined undefined", "input.key_not_found",
    ]  # fmt: skip
