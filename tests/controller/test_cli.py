"""The `cronium` command without a host: help, misuse, and what it costs to say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_controller.arguments import read
from runner_process import PATIENCE, ROOT

COMMANDS = ["run", "deploy", "attach", "wait", "status", "logs", "cancel", "ps", "gc", "version"]
_MAIN = "from cronium_controller.cli import main; main()"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    return kept | {"HOME": str(tmp_path), "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state")}


def cronium(
    environment: dict[str, str], *words: str, code: str = _MAIN, **options: object
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done  # type: ignore[no-any-return]


@pytest.mark.parametrize("words", [[], *[[command] for command in COMMANDS]], ids=lambda words: " ".join(words))
def test_every_command_explains_itself(environment: dict[str, str], words: list[str]) -> None:
    done = cronium(environment, *words, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: cronium" in done.stdout
    if words != ["version"]:
        assert "Example" in done.stdout
        assert f"cronium {words[0] if words else 'run'} " in done.stdout.partition("Example")[2]
    assert not (Path(environment["CRONIUM_CONTROLLER_STATE"])).exists()


def test_the_module_is_the_command_too(environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "cronium_controller", "--version"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, cronium(environment, "--version").stdout, "")


def test_help_costs_neither_asyncssh_nor_sqlalchemy(environment: dict[str, str]) -> None:
    code = (
        "import sys\nfrom cronium_controller.cli import main\ntry: main()\nfinally:\n"
        " loaded = {'asyncssh', 'sqlalchemy', 'yaml', 'cryptography'} & set(sys.modules)\n"
        " assert not loaded, loaded"
    )
    for words in (["--help"], ["run", "--help"], ["version"]):
        done = cronium(environment, *words, code=code)
        assert (done.returncode, done.stderr) == (0, "")


def test_version_imports_no_cleaning_masks_nor_limits(environment: dict[str, str]) -> None:
    code = (
        "import sys\nfrom cronium_controller.cli import main\ntry: main()\nfinally:\n"
        " mine = {name for name in sys.modules if name.startswith('cronium_')}\n"
        " late = {'cronium_runner.wire.text', 'cronium_runner.wire.masks', 'cronium_controller.api.limits'}\n"
        " assert not late & mine, late & mine\n"
        " assert len(mine) <= 31, sorted(mine)"
    )
    done = cronium(environment, "--version", code=code)
    assert (done.returncode, done.stderr) == (0, "")


def test_loading_ssh_starts_no_process_and_loses_no_algorithm() -> None:
    """asyncssh by itself runs ldconfig, gcc and ld, to look for libraries."""
    program = (
        "import sys\n"
        "if sys.argv[1:]:\n"
        " sys.addaudithook(lambda event, _: event == 'subprocess.Popen' and sys.exit('started'))\n"
        " from cronium_controller.ssh_library import asyncssh as loaded_late\n"
        " assert loaded_late.Error\n"
        "import asyncssh\nfrom asyncssh.kex import get_kex_algs\nfrom asyncssh.mac import get_mac_algs\n"
        "print(get_kex_algs(), get_mac_algs())"
    )
    ours, as_ever = (
        subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        for words in (["ours"], [])
    )
    assert (ours.returncode, ours.stderr) == (0, "")
    assert ours.stdout == as_ever.stdout


@pytest.mark.parametrize("words", [["history"], ["metrics"], ["deploy", "--history"], ["payload", "list"]])
def test_what_only_reads_the_database_loads_no_ssh(words: list[str], environment: dict[str, str]) -> None:
    """Nor SQLAlchemy, which takes as long."""
    code = (
        "import sys\nfrom cronium_controller.cli import main\ntry: main()\nfinally:\n"
        " loaded = {'asyncssh', 'sqlalchemy', 'cryptography'} & set(sys.modules)\n"
        " assert not loaded, loaded"
    )
    done = cronium(environment, *words, code=code)
    assert done.returncode == 0, done.stderr


def test_running_a_job_loads_no_sqlalchemy() -> None:
    program = (
        "import sys, cronium_controller.dispatch, cronium_controller.fanout, cronium_controller.client\n"
        "assert 'sqlalchemy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["run"],
        ["run", "job.sh"],
        ["run", "--host", "h"],
        ["run", "--host", "h", "--nonsense", "job.sh"],
        ["run", "--host", "h", "--timeout", "soon", "job.sh"],
        ["run", "--host", "h", "--host-keys", "maybe", "job.sh"],
        ["run", "--host", "h", "--on-disconnect", "panic", "job.sh"],
        ["attach"],
        ["attach", "one", "--offset", "1"],
        ["attach", "one", "--offset", "-1", "0"],
        ["logs", "one", "--offset", "-1"],
        ["logs", "one", "--stream", "stdlog"],
        ["status"],
        ["deploy"],
    ],
    ids=" ".join,
)
def test_misuse_never_looks_like_a_script_that_ended_with_two(environment: dict[str, str], words: list[str]) -> None:
    done = cronium(environment, *words)
    assert done.returncode == 125
    assert done.stdout == ""
    assert "Error: " in done.stderr or done.stderr.endswith("[usage.invalid]\n")


def test_no_words_at_all_is_a_question_for_help(environment: dict[str, str]) -> None:
    done = cronium(environment)
    assert done.returncode in (0, 125)
    assert "Commands:" in done.stdout + done.stderr


def test_the_words_are_checked_before_anything_is_sent(environment: dict[str, str], tmp_path: Path) -> None:
    """The host doesn't exist, so anything else than 125 would have tried to reach it."""
    script = tmp_path / "job.sh"
    script.write_text("true\n")
    for wrong, code in [
        (["--input", "{"], "input.invalid"),
        (["--event", "[]"], "input.invalid"),
        (["--var", "X"], "usage.invalid"),
        (["--secret", "X=hunter2"], "usage.invalid"),
        (["--interpreter", "'open"], "usage.invalid"),
        (["--execution-id", "../x"], "execution.id_invalid"),
        (["--execution-id", ""], "execution.id_invalid"),
        (["--execution-id", "x" * 65], "execution.id_invalid"),
    ]:
        done = cronium(environment, "run", "--host", "host.invalid", *wrong, str(script))
        assert done.returncode == 125, (wrong, done)
        assert done.stderr.endswith(f"[{code}]\n"), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert "hunter2" not in done.stderr


def test_an_unknown_execution_is_said_without_a_host(environment: dict[str, str]) -> None:
    for command in ("attach", "status", "logs", "cancel"):
        done = cronium(environment, command, "never-submitted")
        assert done.returncode == 125
        assert "[execution.not_found]" in done.stderr


def test_an_error_is_one_json_object_with_json(environment: dict[str, str], tmp_path: Path) -> None:
    done = cronium(environment, "run", "--json", "--host", "web01", str(tmp_path / "nothere.sh"))
    assert done.returncode == 125
    said = json.loads(done.stdout)
    assert said["state"] == "rejected"
    assert said["error"]["code"] == "payload.not_found"
    assert str(tmp_path / "nothere.sh") in said["error"]["message"]
    assert str(tmp_path / "nothere.sh") in done.stderr


def test_a_store_that_cannot_be_used_is_one_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("true\n")
    environment["CRONIUM_CONTROLLER_STATE"] = "/proc/nothere"
    for words in (["run", "--host", "web01", str(tmp_path / "job.sh")], ["status", "one"]):
        done = cronium(environment, *words)
        assert done.returncode == 125
        assert done.stderr.endswith("[store.unusable]\n")
        assert done.stderr.count("\n") == 1


def test_help_into_a_closed_pipe_is_no_traceback(environment: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", _MAIN, "run", "--help"],
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_an_interrupt_while_it_is_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    found_first = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", "from cronium_controller.entry import main; main()", "version"],
        env={**os.environ, "PYTHONPATH": found_first}, capture_output=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, b"cronium: interrupted\n")


def test_what_the_command_is_made_of_runs_it() -> None:
    """The entry point of the package."""
    done = subprocess.run(
        [sys.executable, "-c", "from cronium_controller.entry import main; main()", "version"],
        capture_output=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.startswith(b"cronium ")
    assert 'cronium = "cronium_controller.entry:main"' in (ROOT / "pyproject.toml").read_text()


def test_a_word_too_long_for_a_file_name_is_no_file() -> None:
    assert read('{"key": "' + "x" * 5000 + '"}') is None
