"""What a start of the runner imports: a module of its own costs each agent's start about 0.3 ms."""

import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_runner import bundle, running, safe_path
from cronium_runner.cli import cronium_runner
from cronium_runner.errors import OutcomeUnknownError, RunnerError
from cronium_runner.wire import frames
from cronium_runner.wire.results import EXIT_RUNNER_FAILED, EXIT_UNREACHABLE
from runner_process import Host

MOST_BEFORE_HELLO = 22
MOST_IN_AGENT = 54
"""Of the runner's own, in an agent that is ready for a submission."""
MOST_IN_RUN = 54
MOST_IN_VERSION = 5
WANTED_LATER = {
    "cronium_runner.wire.text",
    "cronium_runner.masking",
    "cronium_runner.secret_forms",
    "cronium_runner.platform_client",
    "cronium_runner.cli",
    "click",
    "ssl",
    "yaml",
}
FOR_JOBS = {"cronium_runner.agent", "cronium_runner.supervisor", "cronium_runner.wire.results", "socket"}


def imported(tmp_path: Path, *words: str, sent: bytes = b"") -> set[str]:
    """The modules that a whole command imports when its standard input is `sent`."""
    command = [sys.executable, "-X", "importtime", "-m", "cronium_runner", *words]
    environment = {"CRONIUM_STATE_DIR": str(tmp_path / "state"), "CRONIUM_INSTALL_DIR": str(tmp_path / "root")}
    done = subprocess.run(command, env=environment, input=sent, capture_output=True, check=True)
    lines = [line.split("|") for line in done.stderr.decode().splitlines() if line.startswith("import time:")]
    return {line[2].strip() for line in lines if len(line) == 3}


def own(modules: set[str]) -> list[str]:
    return sorted(name for name in modules if name.partition(".")[0] == "cronium_runner")


def test_an_agent_imports_little_before_its_hello(tmp_path: Path) -> None:
    """One whose channel has ended says HELLO and leaves."""
    found = imported(tmp_path, "agent")
    assert found & (WANTED_LATER | FOR_JOBS) == set()
    assert "cronium_runner.install" in found
    assert len(own(found)) <= MOST_BEFORE_HELLO, own(found)


def test_an_agent_has_imported_what_jobs_need(tmp_path: Path) -> None:
    found = imported(tmp_path, "agent", sent=frames.encode(frames.Kind.PING, 0, b"1"))
    assert found & WANTED_LATER == set()
    assert found >= FOR_JOBS
    assert len(own(found)) <= MOST_IN_AGENT, own(found)


def test_a_plain_run_imports_no_click(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(":\n")
    found = imported(tmp_path, "run", str(script))
    assert found & WANTED_LATER == set()
    assert len(own(found)) <= MOST_IN_RUN, own(found)


def test_version_imports_few_modules(tmp_path: Path) -> None:
    found = imported(tmp_path, "version")
    assert 1 < len(own(found)) <= MOST_IN_VERSION, own(found)


def test_a_plain_run_has_the_options_that_click_gives() -> None:
    run = cronium_runner.commands["run"]
    given = run.make_context("run", ["job.tar.gz"]).params
    spoken = {"run_as": None, "as_json": False, "verbose": False}
    assert given == {"payload": "job.tar.gz", **running.NO_OPTIONS, **spoken}


def test_a_plain_run_opens_the_streams_it_lacks(tmp_path: Path) -> None:
    """As the same command does with an option: else a socket would get the number of standard output."""
    script = tmp_path / "script.sh"
    script.write_text("echo to nobody\nexit 3\n")
    environment = {"CRONIUM_STATE_DIR": str(tmp_path / "state"), "CRONIUM_INSTALL_DIR": str(tmp_path / "root")}
    line = f"exec {shlex.join([sys.executable, '-m', 'cronium_runner', 'run', str(script)])} <&- >&-"
    done = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_plain_run_says_what_is_wrong(tmp_path: Path) -> None:
    environment = {"CRONIUM_STATE_DIR": str(tmp_path / "state"), "CRONIUM_INSTALL_DIR": str(tmp_path / "root")}
    command = [sys.executable, "-m", "cronium_runner", "run", str(tmp_path / "absent.tar.gz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.endswith("[payload.not_found]\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_frame_that_came_with_the_start_is_answered(host: Host) -> None:
    """It is read before the agent that answers it is loaded."""
    command = [*host.executable, "agent"]
    sent = frames.encode(frames.Kind.PING, 0, b"early")
    done = subprocess.run(command, env=host.environment, input=sent, capture_output=True, check=True)
    reader = frames.FrameReader()
    kinds = [frame.kind for frame in reader.feed(done.stdout.removeprefix(frames.MAGIC))]
    assert kinds == [frames.Kind.HELLO, frames.Kind.PONG]


@pytest.mark.parametrize("words", [["version"], ["--help"]])
def test_a_short_command_imports_no_cleaning_nor_masks(tmp_path: Path, words: list[str]) -> None:
    found = imported(tmp_path, *words)
    assert found & {"cronium_runner.wire.text", "cronium_runner.wire.masks", "cronium_runner.jobdir"} == set()


def test_version_of_a_whole_binary_imports_little(tmp_path: Path) -> None:
    """It checks its files as each start does, without what only a damaged form needs."""
    content = b"program"
    lines = [bundle.MAGIC, "9.9.9 0123456789ab abcdef0 2026-01-02T03:04:05Z", f"f 700 {len(content)} cronium-runner"]
    form = bundle.Bundle("\n".join([*lines, f"s {hashlib.sha256(content).hexdigest()} cronium-runner", ""]))
    safe_path.make_one(str(tmp_path / "root"))
    bundle.place(form, str(tmp_path / "root/form"), lambda _: content)
    executable = tmp_path / "root/form/cronium-runner"
    program = (
        "import sys; sys.frozen, sys.executable = True, sys.argv[1]\n"
        "from cronium_runner import version\n"
        "status = version.print_version()\n"
        "print(*sys.modules, sep='\\n'); sys.exit(status)"
    )
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}", str(executable)]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    said, *modules = whole.stdout.splitlines()
    assert "(built 2026-01-02T03:04:05Z, commit abcdef0)" in said
    assert set(modules) & {"typing", "re", "json", "enum", "cronium_runner.errors", "cronium_runner.install"} == set()
    executable.write_bytes(b"")
    damaged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert damaged.returncode == 125
    assert damaged.stderr.endswith("[install.damaged]\n")


def test_errors_have_the_exit_status_of_their_results() -> None:
    """Written down twice: an agent's start loads no results."""
    assert OutcomeUnknownError.exit_status == EXIT_UNREACHABLE
    assert RunnerError.exit_status == EXIT_RUNNER_FAILED


def test_default_names_are_masked_without_an_expression() -> None:
    program = (
        "from cronium_runner.wire import masks\n"
        "assert masks.masked_names(['PATH', 'api_key']) == ['api_key'] and not masks.is_masked_name('KEY')\n"
        "assert masks._expression.cache_info().currsize == 0\n"
        "assert masks.is_masked_name('KEY', ('?EY',)) and masks._expression.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_printable_ascii_is_cleaned_without_an_expression() -> None:
    program = (
        "import sys; from cronium_runner.wire import text\n"
        "assert text.clean(' a sentence ') == 'a sentence' and text.last_words(b'its\\nend') == 'its end'\n"
        "assert text.clean_lines(b'a\\tline\\n') == b'a\\tline\\n' and text.clean_json('{}') == '{}'\n"
        "assert text.is_clean_json(b'{}') and not text.is_clean_json(b'\"' + b'x' * 2001 + b'\"')\n"
        "assert text._unsafe.cache_info().currsize == 0\n"
        "assert text.clean('\\x1b') == '\\\\x1b' and text._unsafe.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
