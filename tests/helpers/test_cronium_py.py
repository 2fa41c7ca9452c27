"""cronium.py and sitecustomize.py under every Python there is: same calls, and a script that notices nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_runner.values import BundledValues
from helper_clients import Call, helper_folder, interpreters, record, supervisor, with_grammar

PYTHONS = list(interpreters())


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return helper_folder(tmp_path / "helpers")


def run(
    python: str, folder: Path, *arguments: str, socket: str = "", path: str = "", cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": f"{folder}:{path}" if path else str(folder), "CRONIUM_SOCKET": socket}
    return subprocess.run(
        [python, *arguments], env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


CALLS = """
import json, sys
assert "json" in sys.modules and "cronium" not in sys.modules
cronium.setVariable("S", "text")
assert cronium.get_variable("S") == "text"
cronium.set_variable("D", {"ü": [1, 2.5, None, True, 12345678901234567890123]})
assert cronium.getVariable("D") == {"ü": [1, 2.5, None, True, 12345678901234567890123]}
assert cronium.getVariable("NOPE") is None and cronium.getVariable("NOPE", 5) == 5
assert cronium.getVariable("A") == "1"
assert cronium.input() == {"k": {"l": [7]}} and cronium.input("k.l.0") == 7
assert cronium.output("x" * 3000000) is None
cronium.output({"a": 1}); cronium.output("b", ("t",)); cronium.output("-", "-")
assert cronium.event()["name"] == "N" and cronium.event("eventName") == "N" and cronium.event("user") is None
cronium.setCondition(True); cronium.set_condition(False)
from cronium import CroniumError
def code(function, *arguments):
    try:
        function(*arguments)
    except CroniumError as error:
        assert error.__suppress_context__ or error.__context__ is None
        return error.code, str(error)
assert code(cronium.input, "nope") == ("input.key_not_found", "input key 'nope' not found")
assert code(cronium.event, "nope") == ("event.field_not_found", "event field 'nope' not found")
assert code(cronium.setVariable, "", 1) == ("usage", "a variable needs a name")
for value in (float("nan"), [float("inf")], {1, 2}, b"x", object(), "\\ud800", [[]]):
    if value == [[]]:
        for _ in range(100000):
            value = [value]
    assert code(cronium.setVariable, "V", value)[0] == "value.invalid", value
for wrong in (lambda: cronium.output(), lambda: cronium.output(1, 2, 3), lambda: cronium.output(1, 2)):
    try:
        wrong()
    except TypeError:
        continue
    raise AssertionError
import cronium as imported, builtins
assert imported is builtins.cronium is cronium
print("done")
import os; sys.stdout.flush(); os._exit(0)
"""


def test_every_call(tmp_path: Path, folder: Path, python: str) -> None:
    values = BundledValues(str(tmp_path), input={"k": {"l": [7]}}, variables={"A": "1"}, event={"name": "N"})
    script = tmp_path / "script.py"
    script.write_text(CALLS, encoding="utf-8")
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(python, folder, str(script), socket=socket)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("done\n", "", 0)
    assert values.output == {"a": 1, "b": ["t"], "-": "-"}
    assert values.condition is False
    assert set(values.changed_variables) == {"S", "D"}


def test_nobody_there(tmp_path: Path, folder: Path, python: str) -> None:
    script = "import cronium\ntry: cronium.input()\nexcept cronium.CroniumError as error: print(error.code, error)"
    assert run(python, folder, "-c", script).stdout == (
        "supervisor.gone cronium works only inside a job: CRONIUM_SOCKET is not set\n"
    )
    assert run(python, folder, "-c", script, socket="/nowhere").stdout.startswith("supervisor.gone no supervisor")
    for head in (b"", b"X", record(b"O", b"1")):
        with supervisor(tmp_path, lambda call, head=head: call.send(head)) as socket:  # type: ignore[misc]
            ran = run(python, folder, "-c", script, socket=socket)
        assert ran.stdout == "supervisor.gone the supervisor of this execution is gone\n"


def test_it_has_no_standard_input_and_ignores_what_it_does_not_know(tmp_path: Path, folder: Path) -> None:
    def answer(call: Call) -> None:
        assert call.stdin_chunks() == []
        call.send(record(b"?", b"x"), record(b"O", b"[1]"), record(b"X", b"\0"))

    with supervisor(tmp_path, answer) as socket:
        assert run(sys.executable, folder, "-c", "print(cronium.input())", socket=socket).stdout == "[1]\n"


def test_the_script_runs_as_if_started_directly(tmp_path: Path, folder: Path, python: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nprint(__name__, __file__, sys.argv, sys.path[0], sys.modules['__main__'].__file__, sorted("
        "set(globals())))\nprint('json' in sys.modules, 'socket' in sys.modules, 'importlib.util' in sys.modules)\n"
        "def fails():\n    raise KeyError('x')\nfails()\n"
    )
    alone = subprocess.run(
        [python, str(script), "a"], capture_output=True, text=True, check=False, env=_without_pythonpath()
    )
    ran = run(python, folder, str(script), "a")
    assert (ran.stdout, ran.stderr, ran.returncode) == (alone.stdout, alone.stderr, alone.returncode)
    assert ran.returncode == 1


def _without_pythonpath() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


NEXT = (
    "import sys\nprint('next', __file__.rpartition('/')[2], __spec__.name)\nsys.path.insert(0, '/inserted')\nFLAG = 1\n"
)


def test_the_next_sitecustomize_runs_as_if_ours_were_not_there(tmp_path: Path, folder: Path, python: str) -> None:
    following = tmp_path / "following"
    following.mkdir()
    (following / "sitecustomize.py").write_text(NEXT)
    show = "import sys, sitecustomize; print(sitecustomize.FLAG, sitecustomize.__file__, sys.path[1:3]); cronium"
    ran = run(python, folder, "-c", show, path=str(following))
    assert ran.stdout == (
        f"next sitecustomize.py sitecustomize\n1 {following}/sitecustomize.py {['/inserted', str(folder)]}\n"
    )
    assert ran.stderr == ""


@pytest.mark.parametrize("broken", ["import no_such_module_at_all\n", "1/0\n"])
def test_a_next_sitecustomize_that_fails_is_reported_as_ever(
    tmp_path: Path, folder: Path, broken: str, python: str
) -> None:
    following = tmp_path / "following"
    following.mkdir()
    (following / "sitecustomize.py").write_text(broken)
    alone = run(python, following, "-c", "print(1)")
    ran = run(python, folder, "-c", "cronium; print(1)", path=str(following))
    assert (ran.stdout, ran.returncode) == (alone.stdout, alone.returncode) == ("1\n", 0)
    assert ran.stderr.splitlines()[-1] == alone.stderr.splitlines()[-1]


def test_without_a_next_one_nothing_is_said(folder: Path, python: str) -> None:
    show = "import sys; print('importlib.util' in sys.modules, [p for p in sys.path if p.endswith('/-')])"
    ran = run(python, folder, "-c", show)
    assert ran.stderr == ""
    assert ran.stdout.endswith(" []\n")


def test_a_script_that_is_itself_called_cronium(tmp_path: Path, folder: Path, python: str) -> None:
    values = BundledValues(str(tmp_path), input="in")
    script = tmp_path / "cronium.py"
    script.write_text("print('once')\nprint(cronium.input())\n")
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(python, folder, str(script), socket=socket)
    assert (ran.stdout, ran.stderr) == ("once\nin\n", "")


def test_inside_a_virtual_environment(tmp_path: Path, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    script = "import sys; print(sys.prefix, callable(cronium.input))"
    ran = run(str(tmp_path / "venv/bin/python"), folder, "-c", script)
    assert (ran.stdout, ran.stderr) == (f"{tmp_path / 'venv'} True\n", "")


@pytest.mark.parametrize("options", [["-I"], ["-S"], ["-E"], ["-X", "utf8"], ["-W", "error"], ["-O"]])
def test_interpreter_options(folder: Path, options: list[str]) -> None:
    ran = run(sys.executable, folder, *options, "-c", "print(1)")
    assert (ran.stdout, ran.stderr) == ("1\n", "")


def test_python_2_is_left_in_peace(tmp_path: Path, folder: Path) -> None:
    found = shutil.which("python2.7")
    if not found or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("no Python 2.7 here")
    following = tmp_path / "following"
    following.mkdir()
    (following / "sitecustomize.py").write_text("import sys; sys.stdout.write('next ')")
    ran = run(found, folder, "-c", "print(1)", path=str(following))
    assert (ran.stdout, ran.stderr) == ("next 1\n", "")
    assert run(found, folder, "-c", "print(1)").stderr == ""


def test_threads_and_processes_lose_nothing(tmp_path: Path, folder: Path) -> None:
    values = BundledValues(str(tmp_path))
    script = (
        "import threading\n"
        "ts = [threading.Thread(target=cronium.setVariable, args=('V%d' % i, i)) for i in range(50)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]"
    )
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(sys.executable, folder, "-c", script, socket=socket)
    assert ran.stderr == ""
    assert values.changed_variables == {f"V{i}": i for i in range(50)}
    assert json.loads((tmp_path / "variables.json").read_text()) == values.changed_variables


KEYWORDS = """
import asyncio, cronium
from cronium import AsyncCronium, Cronium, CroniumAPIError, CroniumError, CroniumTimeoutError
assert issubclass(CroniumAPIError, CroniumError) and issubclass(CroniumTimeoutError, CroniumError)
assert cronium.input(key="k") == 7
cronium.set_variable(key="A", value=[1]); cronium.setVariable(name="B", value=2)
assert cronium.get_variable(key="A") == [1] and cronium.getVariable(name="B", default=0) == 2
assert Cronium().get_variable("NOPE", 5) == cronium.cronium.get_variable(key="NOPE", default=5) == 5
cronium.output(data={"a": 1}); cronium.output(key="b", value=2); cronium.output("c", value=3)
cronium.set_condition(condition=1)
assert cronium.get_condition() is True
for wrong in (lambda: cronium.set_variable("A"), lambda: cronium.get_variable(), lambda: cronium.output(date=1),
              lambda: cronium.get_variable("A", key="A"), lambda: cronium.append_variable("A")):
    try:
        wrong()
    except TypeError:
        continue
    raise AssertionError
async def asynchronous():
    async with AsyncCronium() as client:
        await client.set_variable(key="C", value=3)
        return await client.increment_variable("C", by=0.5)
loop = asyncio.new_event_loop()
assert loop.run_until_complete(asynchronous()) == 3.5
loop.close()
print("done")
"""


def test_keywords_and_classes_of_the_public_original(tmp_path: Path, folder: Path, python: str) -> None:
    values = BundledValues(str(tmp_path), input={"k": 7})
    with supervisor(tmp_path, with_grammar(values)) as socket:
        ran = run(python, folder, "-c", KEYWORDS, socket=socket)
    assert (ran.stdout, ran.stderr) == ("done\n", "")
    assert (values.output, values.condition) == ({"a": 1, "b": 2, "c": 3}, True)
    assert values.changed_variables == {"A": [1], "B": 2, "C": 3.5}
