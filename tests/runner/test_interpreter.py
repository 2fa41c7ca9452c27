"""Interpreter: each name finds its program on the script's own PATH, and each script that is resolved really runs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cronium_runner.errors import InterpreterNotFoundError, ManifestError, NotExecutableError
from cronium_runner.interpreter import ALIASES, EXTENSIONS, canonical, resolve

PATH = os.environ["PATH"]


def write(folder: Path, name: str, content: str, mode: int = 0o600) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode())
    (folder / name).chmod(mode)
    return name


def output_of(argv: list[str]) -> bytes:
    return subprocess.run([*argv, "one two"], stdout=subprocess.PIPE, check=True, timeout=60).stdout


SCRIPTS = {
    "bash": ("bash", 'shopt -q login_shell; echo "${BASH_VERSION:+ok} $1"'),
    "sh": ("sh", 'echo "ok $1"'),
    "python": ("python3", "import sys; print('ok', *sys.argv[1:])"),
    "node": ("node", "console.log('ok', ...process.argv.slice(2))"),
    "ruby": ("ruby", "puts 'ok ' + ARGV[0]"),
    "perl": ("perl", 'print "ok $ARGV[0]\\n"'),
    "php": ("php", '<?php echo "ok $argv[1]\\n";'),
    "deno": ("deno", "console.log('ok', ...Deno.args)"),
    "pwsh": ("pwsh", 'Write-Output "ok $($args[0])"'),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_interpreter_runs_a_real_script(tmp_path: Path, name: str) -> None:
    program, script = SCRIPTS[name]
    if shutil.which(program) is None:
        with pytest.raises(InterpreterNotFoundError) as caught:
            resolve(name, write(tmp_path, "script.ps1", script), str(tmp_path), PATH)
        assert caught.value.exit_status == 127
        assert caught.value.message.startswith(name)
        pytest.skip(f"{program} is not installed: seen that it is said, not that it runs")
    command = resolve(name, write(tmp_path, "script.ps1", script), str(tmp_path), PATH)
    assert command.kind == name
    assert command.argv[-1] == str(tmp_path / "script.ps1")
    assert output_of(command.argv) == b"ok one two\n"


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_in_any_case(alias: str) -> None:
    assert canonical(alias) == canonical(alias.upper()) == canonical(alias.title()) == ALIASES[alias]


@pytest.mark.parametrize("name", ["", "cobol", "bash ", "/bin/bash", "python3.11"])
def test_unknown_names(name: str) -> None:
    assert canonical(name) is None


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A PATH with a stand-in for every program there is."""
    folder = tmp_path / "bin"
    for name in ("bash", "sh", "python3", "python", "node", "nodejs", "ruby", "perl", "php", "deno", "pwsh"):
        write(folder, name, "#!/bin/sh\n", 0o755)
    return str(folder)


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_inferred_from_the_ending(tmp_path: Path, programs: str, ending: str) -> None:
    name = write(tmp_path, "lib/script" + ending.upper(), "no first line of that kind\n")
    assert resolve(None, name, str(tmp_path), programs).kind == EXTENSIONS[ending]


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_the_first_line_wins_over_the_ending(tmp_path: Path, programs: str, ending: str) -> None:
    name = write(tmp_path, "script" + ending, "#!/bin/cat -n\n")
    assert resolve(None, name, str(tmp_path), programs) == (["/bin/cat", "-n", str(tmp_path / name)], "other")


FIRST_LINES = [
    # What the first line says is what the kernel would do.
    ("x.sh", "#!/bin/bash -e", ["/bin/bash", "-e"]),
    ("x.sh", "#!/bin/sh", ["/bin/sh"]),
    ("x.sh", "#!/usr/bin/env sh", ["{bin}/sh"]),
    ("x.py", "#!{other}/python", ["{other}/python"]),
    ("x.py", "#!{other}/python -u", ["{other}/python", "-u"]),
    ("x.py", "#!/usr/bin/env -S python3 -u", ["{bin}/python3", "-u"]),
    ("x.ts", "#!/usr/bin/env -S deno run", ["{bin}/deno", "run"]),
    ("x.sh", "#!\t/bin/sh \t -e\t", ["/bin/sh", "-e"]),
    # It says no more than the ending: then where the program is, is the host's affair.
    ("x.py", "#!/usr/bin/env python", ["{bin}/python3"]),
    ("x.py", "#!/usr/local/bin/python3", ["{bin}/python3"]),
    ("x.js", "#!/usr/bin/env node", ["{bin}/nodejs"]),
    ("x.rb", "#!/usr/bin/ruby", ["{bin}/ruby"]),
    ("x.rb", "#!/usr/bin/ruby -w", ["{bin}/ruby", "-w"]),
    ("x.ts", "#!/usr/bin/env deno", ["{bin}/deno", "run", "--allow-all"]),
]


@pytest.mark.parametrize(("name", "line", "argv"), FIRST_LINES, ids=[f"{case[0]} {case[1]}" for case in FIRST_LINES])
def test_first_line_and_ending(tmp_path: Path, name: str, line: str, argv: list[str]) -> None:
    folders = {"bin": str(tmp_path / "bin"), "other": str(tmp_path / "other")}
    for program in ("sh", "python3", "nodejs", "ruby", "deno"):
        write(tmp_path, f"bin/{program}", "#!/bin/sh\n", 0o755)
    write(tmp_path, "other/python", "#!/bin/sh\n", 0o755)
    write(tmp_path, name, line.format(**folders) + "\nrest\n")
    command = resolve(None, name, str(tmp_path), folders["bin"])
    assert command.argv == [*(word.format(**folders) for word in argv), str(tmp_path / name)]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("x.py", "#!/opt/nothing/bin/python", "'/opt/nothing/bin/python', which the first line"),
        ("x.py", "#!/usr/bin/python2.0", "'/usr/bin/python2.0', which the first line"),
        ("x.sh", "#!/usr/bin/env nothing-like-this", "'nothing-like-this', which the first line"),
        ("x.py", "#!/usr/bin/env python3 -u", r"several words it is: #!/usr/bin/env -S"),
    ],
)
def test_what_the_first_line_names_and_is_not_there(tmp_path: Path, name: str, line: str, said: str) -> None:
    write(tmp_path, name, line + "\n")
    with pytest.raises(InterpreterNotFoundError) as caught:
        resolve(None, name, str(tmp_path), PATH)
    assert said in caught.value.message


@pytest.mark.parametrize("interpreter", ["bash", ("/bin/cat", "-A")])
def test_a_named_interpreter_wins_over_the_first_line(tmp_path: Path, interpreter: str | tuple[str, ...]) -> None:
    name = write(tmp_path, "x.py", "#!/usr/bin/env -S python3 -u\n")
    assert os.path.basename(resolve(interpreter, name, str(tmp_path), PATH).argv[0]) in ("bash", "cat")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["/usr/bin/env", "python3"], "python"),
        (["env", "-u", "X", "A=python", "node"], "node"),
        (["nice", "-n", "5", "/usr/bin/python3.11"], "python"),
        (["timeout", "30", "python3", "-u"], "python"),
        (["env", "-S", "A=1 python3 -u"], "python"),
        (["bash", "-c", 'python3 "$0"'], "bash"),
        (["cat", "-n"], "other"),
    ],
)
def test_the_language_of_a_list_that_starts_another(tmp_path: Path, words: list[str], kind: str) -> None:
    assert resolve(tuple(words), write(tmp_path, "script", ""), str(tmp_path), PATH).kind == kind


SHEBANGS = [
    ("#!/bin/bash", ["{bash}"], "bash"),
    ("#!/bin/bash -eu", ["{bash}", "-eu"], "bash"),
    ("#! /bin/sh", ["/bin/sh"], "sh"),
    ("#!/bin/sh\t-e  ", ["/bin/sh", "-e"], "sh"),
    ("#!/usr/bin/env python3", ["{bin}/python3"], "python"),
    ("#!/usr/bin/env -S python3 -u", ["{bin}/python3", "-u"], "python"),
    ("#!/usr/bin/env -Spython3 -u -c 'a b'", ["{bin}/python3", "-u", "-c", "a b"], "python"),
    ("#!/usr/bin/env --split-string=node --no-warnings", ["{bin}/node", "--no-warnings"], "node"),
    ("#!/usr/bin/env -S A=1 python3 -u", ["/usr/bin/env", "-S A=1 python3 -u"], "python"),
    ("#!/usr/bin/env -i", ["/usr/bin/env", "-i"], "other"),
    ("#!/usr/bin/env", ["/usr/bin/env"], "other"),
    ("#!/usr/bin/env -S 'open", ["/usr/bin/env", "-S 'open"], "other"),
    ("#!{bin}/nodejs", ["{bin}/nodejs"], "node"),
    ("#!bin/perl -w", ["{bin}/perl", "-w"], "perl"),
    ("#!/bin/cat", ["/bin/cat"], "other"),
]


@pytest.mark.parametrize(("line", "argv", "kind"), SHEBANGS, ids=[case[0] for case in SHEBANGS])
def test_inferred_from_the_first_line(tmp_path: Path, programs: str, line: str, argv: list[str], kind: str) -> None:
    name = write(tmp_path, "script", line.replace("{bin}", programs) + "\nrest\n")
    command = resolve(None, name, str(tmp_path), programs)
    words = [word.replace("{bin}", programs).replace("{bash}", "/bin/bash") for word in argv]
    assert command == ([*words, str(tmp_path / "script")], kind)


@pytest.mark.parametrize(
    "line",
    ["#!/bin/sh", "#!/bin/bash -eu", "#!/usr/bin/env bash", "#!/usr/bin/env -S bash -eu", "#!/usr/bin/env -S A=1 sh",
     "#! /bin/bash\t-e ", "#!/usr/bin/env -S A=${HOME} bash -e", "#!/usr/bin/env -S A='b c' bash"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["script", "script.sh", "script.py"])
def test_a_first_line_starts_the_same_as_the_kernel_does(tmp_path: Path, line: str, name: str) -> None:
    write(tmp_path, name, line + '\necho "$0 $- $1 ${A-}"\n', 0o700)
    command = resolve(None, name, str(tmp_path), PATH)
    assert output_of(command.argv) == output_of([str(tmp_path / name)])


def test_executed_itself(tmp_path: Path) -> None:
    shutil.copy("/bin/echo", tmp_path / "program")
    (tmp_path / "program").chmod(0o700)
    command = resolve(None, "program", str(tmp_path), PATH)
    assert command == ([str(tmp_path / "program")], "direct")
    assert output_of(command.argv) == b"one two\n"
    (tmp_path / "program").chmod(0o600)
    with pytest.raises(NotExecutableError) as caught:
        resolve(None, "program", str(tmp_path), PATH)
    assert caught.value.exit_status == 126


def test_explicit_argument_vector(tmp_path: Path, programs: str) -> None:
    name = write(tmp_path, "script", "")
    script = str(tmp_path / "script")
    work = str(tmp_path)
    assert resolve(("python3", "-u"), name, work, programs) == ([f"{programs}/python3", "-u", script], "python")
    assert resolve(("/bin/cat", "-n"), name, work, "") == (["/bin/cat", "-n", script], "other")
    assert resolve(("bin/node",), name, work, "") == ([f"{programs}/node", script], "node")
    for missing in ("nothing-like-this", "/bin/nothing-like-this", "nothing/like/this"):
        with pytest.raises(InterpreterNotFoundError, match=r"nothing.like.this"):
            resolve((missing,), name, work, programs)


def test_programs_in_their_order(tmp_path: Path, programs: str) -> None:
    name = write(tmp_path, "script", "")
    for program, interpreter in (("python3", "python"), ("python", "python"), ("node", "node"), ("nodejs", "node")):
        argv = resolve(interpreter, name, str(tmp_path), programs).argv
        assert argv[0] == f"{programs}/{program}"
        (Path(programs) / program).unlink()
    for interpreter in ("python", "node"):
        with pytest.raises(InterpreterNotFoundError) as caught:
            resolve(interpreter, name, str(tmp_path), programs)
        assert caught.value.exit_status == 127


def test_only_the_scripts_path_counts_and_not_the_work_directory(tmp_path: Path, programs: str) -> None:
    name = write(tmp_path, "script.sh", "")
    write(tmp_path, "bash", "#!/bin/sh\n", 0o700)
    for path in ("", ".", ":", "bin", "/nonexistent"):
        with pytest.raises(InterpreterNotFoundError):
            resolve(None, name, str(tmp_path), path)
    first = write(tmp_path, "first/bash", "#!/bin/sh\n", 0o700)
    found = resolve(None, name, str(tmp_path), f"/nonexistent:{tmp_path}/first:{programs}")
    assert found.argv[0] == str(tmp_path / first)


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    name = write(tmp_path, "script.pl", "")
    write(tmp_path, "bad/perl", "", 0o600)
    write(tmp_path, "good/perl", "", 0o700)
    assert resolve(None, name, str(tmp_path), f"{tmp_path}/bad:{tmp_path}/good").argv[0] == f"{tmp_path}/good/perl"
    with pytest.raises(NotExecutableError, match="bad/perl") as caught:
        resolve(None, name, str(tmp_path), f"{tmp_path}/bad")
    assert caught.value.exit_status == 126


def test_a_plain_sh_script_on_a_host_without_bash(tmp_path: Path, programs: str) -> None:
    (Path(programs) / "bash").unlink()
    plain = write(tmp_path, "plain.sh", "#!/bin/sh\n")
    needs_bash = write(tmp_path, "needs.sh", "#!/usr/bin/env bash\n")
    unsaid = write(tmp_path, "unsaid.sh", "echo\n")
    assert resolve(None, plain, str(tmp_path), programs).argv[0] == "/bin/sh"
    for name in (needs_bash, unsaid):
        with pytest.raises(InterpreterNotFoundError, match="bash"):
            resolve(None, name, str(tmp_path), programs)


@pytest.mark.parametrize(
    ("interpreter", "name", "first"),
    [(None, "script", "#!/bin/bash"), (None, "a.sh", "#!/bin/bash"), ("bash", "script", "#!/bin/bash"),
     ("sh", "s", "#!/bin/bash"), (None, "a.py", "#!/usr/bin/env python3"), (None, "a.sh", "# no first line"),
     ("sh", "s", "set -e")],
)  # fmt: skip
def test_windows_line_ending_in_the_first_line(tmp_path: Path, interpreter: str | None, name: str, first: str) -> None:
    write(tmp_path, name, f"{first}\r\necho hi\r\n", 0o700)
    with pytest.raises(NotExecutableError, match="CRLF"):
        resolve(interpreter, name, str(tmp_path), PATH)


def test_windows_line_endings_that_the_interpreter_reads(tmp_path: Path) -> None:
    for interpreter, name, first in [(None, "a.py", "import sys"), ("python", "b", "#!/usr/bin/env python3")]:
        write(tmp_path, name, f"{first}\r\nprint('ok')\r\n")
        assert output_of(resolve(interpreter, name, str(tmp_path), PATH).argv) == b"ok\n"


@pytest.mark.parametrize("name", ["script", "a.sh", "a.py"])
def test_text_that_no_interpreter_reads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("#!/bin/sh\n".encode("utf-16"))
    with pytest.raises(NotExecutableError, match=r"UTF-16.*save it as UTF-8"):
        resolve(None, name, str(tmp_path), PATH)


def test_a_first_line_that_linux_would_cut(tmp_path: Path) -> None:
    name = write(tmp_path, "a.sh", "#!/bin/sh " + "x" * 245 + "\n")
    assert resolve(None, name, str(tmp_path), PATH).argv[1] == "x" * 245
    name = write(tmp_path, "a.sh", "#!/bin/sh " + "x" * 246 + "\n")
    with pytest.raises(NotExecutableError, match="longer than the 255 bytes"):
        resolve(None, name, str(tmp_path), PATH)


@pytest.mark.parametrize("entrypoint", ["../script", "/bin/cat", "a/../script", "..", "none", "a", "link", "", "a\0b"])
def test_entrypoint_has_to_be_a_file_of_the_payload(tmp_path: Path, entrypoint: str) -> None:
    write(tmp_path, "work/script", "")
    write(tmp_path, "script", "")
    (tmp_path / "work/a").mkdir()
    (tmp_path / "work/link").symlink_to("/bin/cat")
    with pytest.raises(ManifestError) as caught:
        resolve(("cat",), entrypoint, str(tmp_path / "work"), PATH)
    assert caught.value.code == "manifest.entrypoint"
