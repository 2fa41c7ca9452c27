"""The command line as a real process: what it prints where, its exit statuses, at most one start, secrets."""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from payload_bytes import archive, make_payload, member
from runner_process import Host, Payload, wait_until

MANIFEST = b"version: v1\ninterpreter: bash\nentrypoint: main.sh\n"


def folder_job(host: Host, script: str, manifest: bytes = MANIFEST) -> Path:
    """A directory that is a job."""
    folder = host.folder / "job"
    folder.mkdir()
    (folder / "manifest.yaml").write_bytes(manifest)
    (folder / "main.sh").write_text(script)
    return folder


# At most once


def test_the_same_id_again_returns_the_recorded_result_and_starts_nothing(host: Host) -> None:
    count = host.folder / "count"
    script = host.script(f"echo x >>{count}; echo out; echo err >&2; exit 7\n")
    first = host.run_json("--execution-id", "job", script)
    again = host.run_json("--execution-id", "job", script)
    assert again == first
    shown = host.run("run", "--execution-id", "job", script)
    assert (shown.returncode, shown.stdout, shown.stderr) == (7, b"out\n", b"err\n")
    assert count.read_text() == "x\n"


def test_fifty_concurrent_runs_of_one_id_start_it_once(host: Host) -> None:
    count = host.folder / "count"
    script = host.script(f"echo x >>{count}; sleep 0.5; echo out; exit 5\n")
    with ThreadPoolExecutor(50) as threads:
        done = list(threads.map(lambda _: host.run("run", "--execution-id", "job", script), range(50)))
    assert count.read_text() == "x\n"
    assert {(one.returncode, one.stdout) for one in done} == {(5, b"out\n")}
    assert host.executions() == ["job"]


@pytest.mark.parametrize("other", ["script", "input", "no input"])
def test_an_id_that_was_used_for_something_else_is_a_conflict(host: Host, other: str) -> None:
    script = host.script("echo one\n")
    assert host.run_json("--execution-id", "job", "--input", "1", script)["state"] == "succeeded"
    if other == "script":
        script = host.script("echo two\n")
    words = {"script": ["--input", "1"], "input": ["--input", "2"], "no input": []}[other]
    result = host.run_json("--execution-id", "job", *words, script)
    assert (result["exit status"], result["error"]["code"]) == (125, "execution.id_conflict")
    recorded = host.recorded("job")
    assert recorded is not None
    assert recorded["state"] == "succeeded"


@pytest.mark.parametrize("wrong", ["", "-x", ".x", "a/b", "../../x", "a b", "a" * 65, "ä", "a\n"])
def test_an_invalid_id_is_refused(host: Host, wrong: str) -> None:
    result = host.run_json(f"--execution-id={wrong}", host.script("true\n"))
    assert (result["exit status"], result["error"]["code"]) == (125, "execution.id_invalid")
    assert host.executions() == []


@pytest.mark.parametrize("allowed", ["a", "A" * 64, "_", "9.8-7_6"])
def test_a_valid_id_is_taken_as_it_is(shared_host: Host, allowed: str) -> None:
    assert shared_host.run_json("--execution-id", allowed, shared_host.script("true\n"))["executionId"] == allowed


def test_the_id_comes_from_the_environment_unless_this_is_inside_a_job(host: Host) -> None:
    script = host.script("true\n")
    assert host.run_json(script, env={"CRONIUM_EXECUTION_ID": "given"})["executionId"] == "given"
    nested = host.run_json(script, env={"CRONIUM_EXECUTION_ID": "given", "CRONIUM_WORK_DIR": "/x"})
    assert nested["executionId"] != "given"
    assert host.run_json("--execution-id", "said", script, env={"CRONIUM_EXECUTION_ID": "e"})["executionId"] == "said"


# Rejections


def rejections() -> dict[str, tuple[bytes, int, str]]:
    """Payloads that can't run: bytes, exit status, error code."""
    good = make_payload({"manifest.yaml": MANIFEST, "main.sh": b"touch /tmp/must-not-exist\n"})
    cut = good[: len(good) // 2]
    return {
        "cut short": (cut, 125, "payload.damaged"),
        "climbing": (archive(member(b"../x", b"")), 125, "payload.unsafe_name"),
        "absolute": (archive(member(b"/x", b"")), 125, "payload.unsafe_name"),
        "link": (archive(member(b"x", b"", kind=b"2", link=b"/etc/passwd")), 125, "payload.unsafe_type"),
        "no manifest": (make_payload({"main.sh": b""}), 125, "manifest.missing"),
        "no script": (make_payload({"manifest.yaml": MANIFEST}), 125, "manifest.entrypoint"),
        "interpreter": (
            make_payload({"manifest.yaml": MANIFEST.replace(b"bash", b"cobol"), "main.sh": b""}),
            125,
            "manifest.interpreter",
        ),
        "not installed": (
            make_payload({"manifest.yaml": MANIFEST.replace(b"bash", b"[/no/such]"), "main.sh": b""}),
            127,
            "interpreter.not_found",
        ),
        "not executable": (
            make_payload({"manifest.yaml": MANIFEST.replace(b"bash", b"[/etc/passwd]"), "main.sh": b""}),
            126,
            "interpreter.not_executable",
        ),
        "limits": (
            make_payload({"manifest.yaml": MANIFEST + b"limits: {open_files: 9000000000000}\n", "main.sh": b""}),
            125,
            "limits.impossible",
        ),
    }


@pytest.mark.parametrize("name", rejections())
def test_a_rejection_leaves_nothing_and_the_id_is_free(host: Host, name: str) -> None:
    content, status, code = rejections()[name]
    payload = host.folder / "bad.tar.gz"
    payload.write_bytes(content)
    result = host.run_json("--execution-id", "job", payload)
    assert (result["exit status"], result["state"], result["error"]["code"]) == (status, "rejected", code)
    assert result["exitCode"] is None
    assert (result["stdout"]["text"], result["stderr"]["text"]) == ("", "")
    assert host.executions() == []
    said = host.run("run", "--execution-id", "job", payload)
    assert (said.returncode, said.stdout) == (status, b"")
    [line] = said.stderr.decode().splitlines()
    assert line.startswith("cronium-runner: ")
    assert line.endswith(f" [{code}]")
    assert host.run_json("--execution-id", "job", host.script("exit 3\n"))["exitCode"] == 3


def test_a_script_with_a_shebang_to_nowhere_leaves_its_id_free(host: Host) -> None:
    """It fails only when it is executed: after the claim, before anything ran."""
    script = host.script("#!/no/such/interpreter\n", "program")
    script.chmod(0o755)
    result = host.run_json("--execution-id", "job", script)
    assert result["exit status"] in (126, 127)
    assert result["state"] == "rejected"
    assert host.executions() == []
    assert host.run_json("--execution-id", "job", host.script("exit 3\n"))["exitCode"] == 3


def test_a_wrong_digest_is_refused_before_anything_is_parsed(host: Host) -> None:
    payload = host.payload("true\n").write(host.folder / "p.tar.gz")
    result = host.run_json("--sha256", "0" * 64, payload)
    assert (result["exit status"], result["error"]["code"]) == (125, "payload.digest_mismatch")
    right = hashlib.sha256(payload.read_bytes()).hexdigest()
    assert host.run_json("--sha256", right, payload)["state"] == "succeeded"
    assert host.run_json("--sha256", right.upper(), payload)["state"] == "succeeded"


@pytest.mark.parametrize("words", [["nowhere"], ["nowhere.tar.gz"], ["./nowhere/deeper"]])
def test_a_payload_that_is_not_there(host: Host, words: list[str]) -> None:
    result = host.run_json(*words)
    assert (result["exit status"], result["error"]["code"]) == (125, "payload.not_found")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--input", "{"], "input.invalid"),
        (["--input", "/no/such/file.json"], "input.invalid"),
        (["--event", "[1]"], "input.invalid"),
        (["--event", "nonsense"], "input.invalid"),
        (["--var", "NAME"], "usage.invalid"),
        (["--var", "=x"], "usage.invalid"),
        (["--secret", "NAME=value-in-argv"], "usage.invalid"),
        (["--secret", "NOT_SET_ANYWHERE"], "usage.invalid"),
        (["--secret", "N=@/no/such/file"], "input.invalid"),
        (["--timeout", "0"], "usage.invalid"),
        (["--timeout", "-1"], "usage.invalid"),
        (["--timeout", "nan"], "usage.invalid"),
        (["--timeout", "inf"], "usage.invalid"),
        (["--timeout", "86401"], "usage.invalid"),
    ],
    ids=str,
)
def test_words_that_cannot_be_used_are_refused_as_json_too(host: Host, words: list[str], code: str) -> None:
    result = host.run_json(*words, host.script("touch ran\n"))
    assert (result["exit status"], result["state"], result["error"]["code"]) == (125, "rejected", code)
    assert "value-in-argv" not in result["error"]["message"]
    assert host.executions() == []


@pytest.mark.parametrize(
    "words", [["run"], ["run", "--no-such-option", "x"], ["run", "--timeout", "soon", "x"], ["nop"]]
)
def test_a_misuse_is_125_and_never_looks_like_a_script(host: Host, words: list[str]) -> None:
    done = host.run(*words)
    assert done.returncode == 125
    assert done.stdout == b""
    assert done.stderr


# What is printed where


@pytest.mark.parametrize(
    ("script", "options", "status", "state"),
    [
        ("echo out; echo err >&2\n", [], 0, "succeeded"),
        ("echo out; echo err >&2; exit 3\n", [], 3, "failed"),
        ("echo out; echo err >&2; kill -9 $$\n", [], 137, "failed"),
        ("echo out; echo err >&2; sleep 60\n", ["--timeout", "2"], 124, "timed_out"),
    ],
    ids=["succeeded", "failed", "signal", "timeout"],
)
def test_json_is_all_there_is_on_standard_output(
    host: Host, script: str, options: list[str], status: int, state: str
) -> None:
    done = host.run("run", "--json", "--execution-id", "job", *options, host.script(script))
    assert done.returncode == status
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    shown = json.loads(done.stdout)
    assert shown["state"] == state
    assert (shown["stdout"].pop("text"), shown["stderr"].pop("text")) == ("out\n", "err\n")
    assert shown == host.recorded("job")


def test_the_text_in_json_is_the_last_64_kib_and_lossy(host: Host) -> None:
    script = host.script("import os\nos.write(1, b'a' * 70_000 + b'\\xff\\n')\nos.write(2, b'\\xc3')\n", "job.py")
    result = host.run_json(script)
    assert result["stdout"]["text"] == "a" * (65536 - 2) + "\ufffd\n"
    assert result["stdout"]["bytes"] == 70_002
    assert result["stderr"]["text"] == "\ufffd"


def test_nothing_of_ours_is_said_when_all_is_well(host: Host) -> None:
    done = host.run("run", host.script("exit 5\n"))
    assert (done.stdout, done.stderr) == (b"", b"")
    loud = host.run("run", "-v", "--execution-id", "job", host.script("exit 5\n"))
    assert loud.stdout == b""
    assert b"execution job" in loud.stderr
    assert b"failed" in loud.stderr


def test_a_result_whose_reader_has_gone_keeps_the_exit_status(host: Host) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    process = host.start("run", "--json", host.script("exit 7\n"), stdout=writable, stderr=subprocess.PIPE)
    os.close(writable)
    assert process.stderr is not None
    with process:
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 7


def test_a_result_that_cannot_be_printed_is_no_success(host: Host) -> None:
    with open("/dev/full", "wb") as full:
        done = host.run("run", "--json", "--execution-id", "job", host.script("exit 0\n"), stdout=full)
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [[0], [1], [0, 1], [0, 1, 2]], ids=str)
def test_standard_streams_that_are_closed_change_nothing(host: Host, closed: list[int]) -> None:
    """cron wrappers and daemons start programs so; a descriptor of ours must not land on their numbers."""
    script = host.script("echo out; echo err >&2; echo to-file >file; exit 7\n")
    words = " ".join(f"{descriptor}>&-" for descriptor in closed)
    command = ["sh", "-c", f'exec "$@" {words}', "sh", *host.executable, "run", "--keep", "--execution-id", "job"]
    done = subprocess.run(
        [*command, str(script)], env=host.environment, capture_output=True, cwd=host.folder, check=False
    )
    recorded = host.recorded("job")
    assert recorded is not None
    assert (done.returncode, recorded["exitCode"]) == (7, 7)
    assert (host.execution("job") / "stdout").read_bytes() == b"out\n"
    assert done.stdout == (b"" if 1 in closed else b"out\n")


# What a script is given


def test_input_variables_and_event_reach_the_script_from_words_files_and_standard_input(host: Host) -> None:
    script = host.script("cronium.input a; cronium.getVariable V; cronium.event name; echo $CRONIUM_EVENT_ID\n")
    (host.folder / "in.json").write_text('{"a": "from a file"}')
    (host.folder / "event.json").write_text('{"name": "Backup", "id": "e9"}')
    words = ["--var", "V=a=b", "--event", "event.json"]
    for origin, expected in (('{"a": 1}', b"1"), ("in.json", b"from a file"), ("-", b"from stdin")):
        done = host.run("run", "--input", origin, *words, script, input=b'{"a": "from stdin"}')
        assert done.stdout == expected + b"\na=b\nBackup\ne9\n", done.stderr


def test_arguments_go_to_the_script_as_they_are(host: Host) -> None:
    done = host.run("run", host.script('printf "<%s>" "$@"\n'), "--", "--json", "a b", "", "-x", "*", "$HOME", "é")
    assert done.stdout.decode() == "<--json><a b><><-x><*><$HOME><é>"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("sh", b"sh\n"),
        ("PYTHON", b"python\n"),
        ("python3 -u", b"python\n"),
        ("/bin/bash -l", b"bash\n"),
        ("cobol", b"unsupported interpreter 'cobol' (known: bash, sh, "),
        ("/opt/nothing/python", b"'/opt/nothing/python' is not on this host"),
        ("'open", b"--interpreter: "),
        ("", b"an empty text is no interpreter"),
    ],
)
def test_an_interpreter_that_was_named_runs_the_script(host: Host, chosen: str, said: bytes) -> None:
    text = '#!/bin/false\n""":"\necho "${BASH:-sh}" | grep -o "[a-z]*$"\nexit\n"""\nprint("python")\n'
    done = host.run("run", "--interpreter", chosen, host.script(text, "script.pl"))
    assert said in done.stdout + done.stderr
    assert (done.returncode == 0) is (said.endswith(b"\n"))


def test_a_folder_names_its_interpreter_in_its_manifest(host: Host) -> None:
    done = host.run("run", "--interpreter", "sh", folder_job(host, "echo never"))
    assert done.returncode == 125
    assert b"has a manifest of its own; write the interpreter there" in done.stderr


def test_another_interpreter_is_another_payload(host: Host) -> None:
    script = host.script("true")
    first = host.run_json("--execution-id", "job", "--interpreter", "sh", script)
    assert host.run_json("--execution-id", "job", "--interpreter", "sh", script) == first
    assert host.run_json("--execution-id", "job", script)["error"]["code"] == "execution.id_conflict"


def test_empty_folders_of_a_job_are_there(host: Host) -> None:
    folder = folder_job(host, '[ -d "empty/one" ] && [ -d lib/two ]\n')
    for name in ("empty/one", "lib/two"):
        (folder / name).mkdir(parents=True)
    first = host.run_json("--execution-id", "job", folder)
    assert first["state"] == "succeeded"
    (folder / "three").mkdir()
    assert host.run_json("--execution-id", "job", folder)["error"]["code"] == "execution.id_conflict"


@pytest.mark.parametrize("origin", ["file", "stdin", "environment"])
def test_a_secret_is_in_no_argument_no_file_and_no_result(host: Host, origin: str) -> None:
    value = "unrepeatable-secret-value"
    script = host.script("cronium.getVariable S | sha256sum\necho ready\nuntil [ -e go ]; do sleep 0.01; done\n"
                         "cronium.setVariable S changed; cronium.getVariable S >&2\n")  # fmt: skip
    secret = host.folder / "secret"
    secret.write_text(value + "\n")
    word = {"file": f"S=@{secret}", "stdin": "S=@-", "environment": "S"}[origin]
    words = ["run", "--keep", "--execution-id", "job", "--secret", word, script]
    given: dict[str, Any] = {"env": {"S": value}} if origin == "environment" else {}
    with secret.open("rb") as file:
        process = host.start(*words, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given)
    host.wait_running("job", b"ready")
    commands = host.command_lines()
    assert value.encode() not in commands
    (host.execution("job") / "work/go").touch()
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.split()[0].decode() == hashlib.sha256(value.encode() + b"\n").hexdigest()
    assert stderr == b"***\n"
    for at, _, names in os.walk(host.state):
        for name in names:
            assert value.encode() not in (Path(at) / name).read_bytes(), name
    recorded = host.recorded("job")
    assert recorded is not None
    assert recorded["variables"] == {"S": "***"}


def test_a_secret_from_the_environment_is_not_in_the_scripts_environment(host: Host) -> None:
    script = host.script('echo "${S-absent}"; cronium.getVariable S | wc -c\n')
    assert host.run("run", "--secret", "S", script, env={"S": "quiet"}).stdout.split() == [b"absent", b"6"]


def test_a_damaged_record_hides_no_other(host: Host) -> None:
    for name in ("good", "bad"):
        host.run("run", "--execution-id", name, host.script("true\n"))
    (host.execution("bad") / "result.json").write_bytes(b'{"executionId"')
    listed = {line["executionId"]: line for line in map(json.loads, host.run("list", "--json").stdout.splitlines())}
    assert listed["good"]["result"]["state"] == "succeeded"
    assert listed["bad"]["result"] is None
    assert "damaged" in listed["bad"]["error"]["message"]


def test_a_lost_execution_that_cannot_be_written_down_is_said_once_and_soon(host: Host) -> None:
    process = host.start("run", "--execution-id", "job", host.script("echo on; sleep 60\n"), stdout=subprocess.DEVNULL)
    claim = host.wait_running("job", b"on")
    process.kill()
    os.kill(claim["supervisor"]["pid"], signal.SIGKILL)
    process.wait()
    command = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", *map(str, host.executable), "status", "job", "--json"]
    done = subprocess.run(command, env=host.environment, stdout=subprocess.PIPE, timeout=30, check=True)
    assert json.loads(done.stdout)["error"]["code"] == "state.unusable", done.stdout
    assert host.run("status", "job").stdout.split()[1] == b"lost"


def test_a_fifo_in_a_folder_is_refused_at_once(host: Host) -> None:
    folder = host.folder / "job"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\nentrypoint: script.sh\n")
    (folder / "script.sh").write_text("true\n")
    os.mkfifo(folder / "pipe")
    done = host.run("run", folder)
    assert (done.returncode, b"[payload.unsafe_type]" in done.stderr) == (125, True)


# The forms of a job


def test_the_bare_forms(host: Host) -> None:
    script = host.script("echo $1; exit 4\n")
    done = host.run(script, "--", "word")
    assert (done.returncode, done.stdout) == (4, b"word\n")
    payload = host.payload("exit 6\n").write(host.folder / "p.tar.gz")
    assert host.run(payload).returncode == 6
    folder = folder_job(host, "echo here; exit 8\n")
    inside = host.run(cwd=folder)
    assert (inside.returncode, inside.stdout) == (8, b"here\n")
    (folder / "manifest.yaml").rename(folder / "manifest.yml")
    assert host.run(cwd=folder).returncode == 8


def test_no_argument_outside_a_job_shows_the_help_and_starts_nothing(host: Host) -> None:
    done = host.run()
    assert b"Usage" in done.stdout + done.stderr
    assert host.executions() == []


def test_a_directory_is_left_with_its_flat_values(host: Host) -> None:
    folder = folder_job(
        host, "cronium.output k v; cronium.setVariable NEW 1; cronium.setVariable OLD 2; touch litter\n"
    )
    first = host.run_json("--execution-id", "job", "--var", "OLD=1", "--var", "SAME=x", folder)
    assert first["state"] == "succeeded"
    assert json.loads((folder / "output.json").read_bytes()) == {"k": "v"}
    assert json.loads((folder / "variables.json").read_bytes()) == {"OLD": "2", "SAME": "x", "NEW": "1"}
    assert sorted(os.listdir(folder)) == ["main.sh", "manifest.yaml", "output.json", "variables.json"]
    assert host.run_json("--execution-id", "job", "--var", "OLD=1", "--var", "SAME=x", folder) == first


def test_a_rejected_directory_is_left_alone(host: Host) -> None:
    folder = folder_job(host, "true\n", MANIFEST.replace(b"bash", b"cobol"))
    assert host.run(folder).returncode == 125
    assert sorted(os.listdir(folder)) == ["main.sh", "manifest.yaml"]


def test_the_work_directory_goes_unless_it_is_kept(host: Host) -> None:
    script = host.script("mkdir -p a/b; touch a/b/c; chmod 0 a/b; ln -s / root; echo x >file\n")
    host.run("run", "--execution-id", "gone", script)
    host.run("run", "--execution-id", "kept", "--keep", script)
    assert not (host.execution("gone") / "work").exists()
    assert (host.execution("kept") / "work/file").read_text() == "x\n"
    (host.execution("kept") / "work/a/b").chmod(0o700)


def test_a_run_acknowledges_its_own_result(host: Host) -> None:
    host.run("run", "--execution-id", "job", host.script("true\n"))
    assert json.loads(host.run("status", "--json", "job").stdout)["acknowledged"] is True


# The other commands


def test_status_says_how_it_stands(host: Host) -> None:
    script = host.script("echo ready\nuntil [ -e go ]; do sleep 0.01; done\nexit 2\n")
    process = host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL)
    host.wait_running("job", b"ready")
    found = json.loads(host.run("status", "--json", "job").stdout)
    assert (found["state"], found["result"], found["stdout"]) == ("running", None, {"bytes": 6})
    assert b"running" in host.run("status", "job").stdout
    (host.execution("job") / "work/go").touch()
    process.wait()
    found = json.loads(host.run("status", "--json", "job").stdout)
    assert (found["state"], found["result"]["exitCode"]) == ("finished", 2)
    assert b"exit 2" in host.run("status", "job").stdout


@pytest.mark.parametrize("command", ["status", "attach", "cancel"])
def test_an_unknown_id_is_125_and_one_sentence(host: Host, command: str) -> None:
    for word, code in (("nobody", b"execution.not_found"), ("../x", b"execution.id_invalid")):
        done = host.run(command, word)
        assert (done.returncode, done.stdout) == (125, b"")
        assert code in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_list_shows_all_oldest_first(host: Host) -> None:
    assert host.run("list").stdout == b""
    for name, status in (("zebra", 1), ("ape", 2)):
        host.run("run", "--execution-id", name, host.script(f"exit {status}\n"))
    lines = host.run("list").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["zebra", "ape"]
    shown = [json.loads(line) for line in host.run("list", "--json").stdout.splitlines()]
    assert [one["result"]["exitCode"] for one in shown] == [1, 2]


def test_cancel_returns_when_nothing_is_left(host: Host) -> None:
    process = host.start("run", "--execution-id", "job", host.script("echo ready; sleep 60\n"), stdout=subprocess.PIPE)
    claim = host.wait_running("job", b"ready")
    done = host.run("cancel", "job")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    recorded = host.recorded("job")
    assert recorded is not None
    assert recorded["state"] == "cancelled"
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert claim["supervisor"]["pid"]
    late = host.run("cancel", "job")
    assert late.returncode == 0
    assert b"has ended already" in late.stderr


def test_attach_shows_the_rest_and_ends_with_the_same_status(host: Host) -> None:
    host.run("run", "--execution-id", "job", host.script("echo abc; echo def >&2; exit 9\n"))
    done = host.run("attach", "job")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"abc\n", b"def\n")
    part = host.run("attach", "--offset", "1", "2", "job")
    assert (part.stdout, part.stderr) == (b"bc\n", b"f\n")
    as_json = host.run("attach", "--json", "job")
    assert as_json.returncode == 9
    assert json.loads(as_json.stdout)["stdout"]["text"] == "abc\n"


def test_the_local_testing_mode_shows_everything_and_keeps_standard_output_clean(host: Host) -> None:
    script = host.script("echo out; cronium.output k v; cronium.setVariable N 1; cronium.setCondition no; exit 3\n")
    done = host.run("test", "--input", '{"a":1}', "--var", "V=w", "--secret", "S", script, env={"S": "hidden-value"})
    assert (done.returncode, done.stdout) == (3, b"out\n")
    said = done.stderr.decode()
    for word in ('{"a":1}', 'V = "w"', "S = ***", "exit 3", '{"k":"v"}', 'N = "1"', "condition", "false", " ms"):
        assert word in said, word
    assert "hidden-value" not in said


def test_the_local_testing_mode_says_why_nothing_ran(host: Host) -> None:
    done = host.run("test", "nowhere.sh")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[payload.not_found]" in done.stderr


def test_validate_checks_everything_and_runs_nothing(host: Host) -> None:
    folder = folder_job(host, f"touch {host.folder}/ran\n")
    done = host.run("validate", folder)
    assert done.returncode == 0
    assert b"valid" in done.stdout
    assert not (host.folder / "ran").exists()
    assert host.executions() == []
    for content, status, code in rejections().values():
        (host.folder / "bad.tar.gz").write_bytes(content)
        bad = host.run("validate", host.folder / "bad.tar.gz")
        if code != "interpreter.not_executable":  # found out only by executing it
            assert bad.returncode == status, code
            assert f"[{code}]".encode() in bad.stderr
        assert host.executions() == []


def test_version_as_text_and_json(host: Host) -> None:
    from cronium_runner import __version__

    assert host.run("version").stdout.decode().startswith(f"cronium-runner {__version__} ")
    shown = json.loads(host.run("version", "--json").stdout)
    assert shown["version"] == __version__
    assert set(shown) == {"version", "builtAt", "commit"}


def test_help_is_no_failure(host: Host) -> None:
    for words in (["--help"], ["run", "-h"], ["list", "--help"]):
        done = host.run(*words)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"Usage")


def test_an_interrupt_in_the_first_moments_leaves_nothing_running_and_is_no_success(host: Host) -> None:
    """Ctrl-C while the supervisor is being started, which it may reach as well: the fixture looks for what is left."""
    script = host.script("sleep 60\n")
    known: list[str] = []
    moments: list[Callable[[], object]] = [  # not before: while Python itself starts, it ends with a status of its own
        host.state.exists,
        lambda: set(host.executions()) - set(known),
        lambda: "job-2" in host.executions(),
    ]
    for number, moment in enumerate(moments):
        known[:] = host.executions()
        process = host.start(
            *("run", "--execution-id", f"job-{number}", script), stderr=subprocess.PIPE, start_new_session=True
        )
        wait_until(moment, "the moment")
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in (130, 125, -signal.SIGINT), stderr


def test_a_run_in_a_job_is_an_execution_of_its_own(host: Host) -> None:
    inner = host.script("echo inner; exit 6\n", "inner.sh")
    names = ("CRONIUM_STATE_DIR", "CRONIUM_INSTALL_DIR")
    ours = [f"{name}={host.environment[name]}" for name in names]
    words = " ".join([*ours, *host.executable, "run", str(inner)])
    done = host.run("run", "--execution-id", "outer", host.script(f"{words}\necho $?\n"))
    assert done.stdout == b"inner\n6\n"
    assert len(host.executions()) == 2


def test_a_payload_is_not_changed_by_its_digest_sidecar(host: Host) -> None:
    payload = Payload(make_payload({"manifest.yaml": MANIFEST, "main.sh": b"exit 3\n"}))
    path = payload.write(host.folder / "p.tar.gz")
    sidecar = host.folder / "p.tar.gz.sha256"
    sidecar.write_text(f"{payload.sha256}  p.tar.gz\n")
    assert host.run(path).returncode == 3
    sidecar.write_text(f"{'0' * 64}  p.tar.gz\n")
    assert host.run_json(path)["error"]["code"] == "payload.digest_mismatch"
    wait_until(lambda: len(host.executions()) == 1, "one execution")
