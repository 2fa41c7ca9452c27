"""The one-file binary as a host gets it: it installs itself once, where it may trust the place, and runs there."""

import _imp
import hashlib
import marshal
import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.frozen

ROOT = Path(__file__).resolve().parents[2]
can_mount = (
    os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
)
mounting = pytest.mark.skipif(not can_mount, reason="needs root and mount namespaces, to mount file systems")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "installed here"


@pytest.fixture
def environment(tmp_path: Path, root: Path) -> dict[str, str]:
    """A login that installs into `root`, with a TMPDIR of its own and no trace of this test run."""
    (tmp_path / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CRONIUM_", "_PYI_", "PYTHON"))}
    return kept | {
        "CRONIUM_INSTALL_DIR": str(root),
        "TMPDIR": str(tmp_path / "tmp"),
        "CRONIUM_STATE_DIR": str(tmp_path / "state"),
    }


def run(*command: object, environment: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def installations(root: Path) -> list[Path]:
    return sorted(root.iterdir())


@pytest.fixture
def executable(binary: Path, root: Path, environment: dict[str, str]) -> Path:
    """The installed executable."""
    assert run(binary, "version", environment=environment).returncode == 0
    (installed,) = installations(root)
    return installed / "cronium-runner"


def test_first_use_installs_privately(binary: Path, root: Path, environment: dict[str, str]) -> None:
    done = run(binary, "version", environment=environment | {"HOME": "/nonexistent"})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d+\.\d+\.\d+", done.stdout)
    (installed,) = installations(root)
    assert re.fullmatch(r"\d+\.\d+\.\d+[^-]*-[0-9a-f]{12}", installed.name)
    for folder, _, files in os.walk(root):
        found = os.lstat(folder)
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o700)
        for name in files:
            assert not os.lstat(os.path.join(folder, name)).st_mode & 0o077 or os.path.islink(
                os.path.join(folder, name)
            )


def test_umask_makes_no_difference(binary: Path, root: Path, environment: dict[str, str]) -> None:
    for umask in (0o000, 0o077, 0o777):
        assert run(binary, "version", environment=environment, umask=umask).returncode == 0
        assert {stat.S_IMODE(os.lstat(folder).st_mode) for folder, _, _ in os.walk(root)} == {0o700}
        shutil.rmtree(root)


def test_second_use_installs_nothing(binary: Path, executable: Path, environment: dict[str, str]) -> None:
    before = {path: path.lstat().st_mtime_ns for path in executable.parent.rglob("*")}
    inode = executable.stat().st_ino
    assert run(binary, "version", environment=environment).returncode == 0
    assert executable.stat().st_ino == inode
    assert {path: path.lstat().st_mtime_ns for path in executable.parent.rglob("*")} == before


def test_damaged_installation_is_made_whole(binary: Path, executable: Path, environment: dict[str, str]) -> None:
    (executable.parent / "helpers" / "client").unlink()
    assert run(binary, "version", environment=environment).returncode == 0
    assert (executable.parent / "helpers" / "client").exists()
    assert installations(executable.parent.parent) == [executable.parent]


def test_twenty_first_uses_at_once(binary: Path, root: Path, environment: dict[str, str]) -> None:
    with ThreadPoolExecutor(20) as threads:
        results = list(threads.map(lambda _: run(binary, "version", environment=environment), range(20)))
    assert [(done.returncode, done.stderr) for done in results] == [(0, "")] * 20
    assert len({done.stdout for done in results}) == 1
    assert len(installations(root)) == 1


def test_install_into_a_named_directory(binary: Path, root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    goal = tmp_path / "opt" / "runner"
    done = run(binary, "install", goal, environment=environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(goal / "cronium-runner"), "")
    assert not root.exists()
    other = tmp_path / "copy"
    done = run(goal / "cronium-runner", "install", other, environment=environment)
    assert (done.returncode, done.stdout.strip()) == (0, str(other / "cronium-runner"))
    assert run(other / "cronium-runner", "version", environment=environment).returncode == 0


def test_install_keeps_out_of_a_directory_in_use(binary: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    goal = tmp_path / "goal"
    goal.mkdir(mode=0o700)
    (goal / "letter").write_text("mine")
    done = run(binary, "install", goal, environment=environment)
    assert done.returncode == 125
    assert "already holds something else" in done.stderr
    assert [path.name for path in tmp_path.glob("goal*")] == ["goal"]
    assert (goal / "letter").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_untrustworthy_root_is_refused(
    kind: str, binary: Path, root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    if kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        root.write_text("")
    else:
        root.mkdir()
        root.chmod(0o777)
    done = run(binary, "version", environment=environment)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("cronium-runner: the runner cannot be installed because")
    assert str(root) in done.stderr
    assert done.stderr.endswith(" [install.unusable]\n")
    assert len(done.stderr.splitlines()) == 1


@as_root
def test_somebody_elses_directory_is_refused(binary: Path, root: Path, environment: dict[str, str]) -> None:
    root.mkdir(mode=0o700)
    os.chown(root, 65534, 65534)
    done = run(binary, "version", environment=environment)
    assert done.returncode == 125
    assert "belongs to uid 65534" in done.stderr


def test_link_in_place_of_the_installation_is_refused(
    binary: Path, executable: Path, environment: dict[str, str]
) -> None:
    """Also when what it points to looks right: it could be exchanged after we looked."""
    aside = executable.parent.with_name("aside")
    executable.parent.rename(aside)
    executable.parent.symlink_to(aside)
    done = run(binary, "version", environment=environment)
    assert done.returncode == 125
    assert "is not a directory" in done.stderr


@mounting
@pytest.mark.parametrize(("option", "reason"), [("noexec", "noexec"), ("ro", "Read-only"), ("size=4m", "No space")])
def test_unusable_file_system_is_named(
    option: str, reason: str, binary: Path, root: Path, environment: dict[str, str]
) -> None:
    root.mkdir(mode=0o700)
    script = 'mount -t tmpfs -o mode=0700,$OPTION none "$CRONIUM_INSTALL_DIR" && exec "$0" version'
    done = run("unshare", "-m", "sh", "-c", script, binary, environment=environment | {"OPTION": option})
    assert done.returncode == 125
    assert str(root) in done.stderr
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@mounting
def test_falls_back_when_home_forbids_execution(binary: Path, environment: dict[str, str]) -> None:
    environment = {name: value for name, value in environment.items() if name != "CRONIUM_INSTALL_DIR"}
    script = """
        mount -t tmpfs -o noexec none "$1" && mount -t tmpfs none /var/tmp || exit 99
        "$0" version && ls /var/tmp/cronium-runner-0 && ls -A "$1/.local/lib/cronium-runner"
    """
    home = os.path.expanduser("~root")
    shutil.copy(binary, Path(environment["TMPDIR"]) / "runner")
    done = run(
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        Path(environment["TMPDIR"]) / "runner",
        home,
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2  # the version, and one installation, which is not below home


LINKERS = {"LD_LIBRARY_PATH": "/some/where", "LD_PRELOAD": "/no/such.so", "LD_AUDIT": "/nor/such.so"}


@pytest.mark.parametrize("form", ["one-file", "installed"])
@pytest.mark.parametrize("login", [{}, LINKERS], ids=["plain", "linker"])
def test_script_sees_no_trace_of_how_the_runner_starts(
    form: str, login: dict[str, str], binary: Path, executable: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """What the login has for the dynamic linker is the script's, and not the runner's."""
    script = tmp_path / "show.sh"
    script.write_text("#!/bin/sh\nset\n")  # no program is started, which would complain of LD_PRELOAD
    names = {name: value for name, value in environment.items() if not name.startswith("LD_")}
    names |= {f"CRONIUM_LOGIN_{name}": "/not the login's" for name in LINKERS}
    done = run(binary if form == "one-file" else executable, "run", script, environment=names | login)
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert not [name for name in seen if name.startswith(("_PYI", "_MEI", "PYINSTALLER", "CRONIUM_LOGIN"))]
    assert {name: value.strip("'") for name, value in seen.items() if name.startswith("LD_")} == login
    assert "CRONIUM_INSTALL_DIR" not in seen


@pytest.mark.parametrize("form", ["one-file", "installed"])
def test_runner_loads_nothing_of_the_logins(
    form: str, binary: Path, executable: Path, environment: dict[str, str]
) -> None:
    """The dynamic linker would complain of each that is not there."""
    done = run(binary if form == "one-file" else executable, "version", environment=environment | LINKERS)
    assert (done.returncode, done.stderr) == (0, "")


def test_runner_gets_no_file_and_no_variable_that_is_not_for_it(binary: Path, environment: dict[str, str]) -> None:
    """The one-file binary itself, and what another program's bootloader has left in the environment."""
    foreign = {"_MEIPASS2": "/foreign", "_PYI_SPLASH_IPC": "/foreign", "PYINSTALLER_RESET_ENVIRONMENT": "/foreign"}
    shown = {"CRONIUM_DUMPABLE": "1"}  # to its own account as well
    words = [str(binary), "agent"]
    with subprocess.Popen(
        words, env=environment | foreign | shown, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdout.read(1)  # it has become the runner
        opened = [os.readlink(path) for path in Path(f"/proc/{agent.pid}/fd").iterdir()]
        variables = Path(f"/proc/{agent.pid}/environ").read_text()
        called = Path(f"/proc/{agent.pid}/comm").read_text()
        agent.stdin.close()
    assert os.path.realpath(binary) not in opened
    assert called == "cronium-runner\n", "what ps shows"
    assert "_PYI_ARCHIVE_FILE=" in variables
    assert "/foreign" not in variables
    assert agent.returncode == 0


def test_helpers_and_exit_status_of_the_script(executable: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\ncronium.input name\ncronium_output answer 42\nexit 3\n")
    done = run(executable, "run", script, "--input", '{"name": "Ada"}', environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (3, "Ada\n", "")


def test_answers_under_a_helpers_name(executable: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """A link to the runner by a helper's name is the helper client beside it."""
    link = tmp_path / "cronium.input"
    link.symlink_to(executable)
    done = run(link, environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: cronium.input")


def test_help_is_there(executable: Path, environment: dict[str, str]) -> None:
    """click makes it of docstrings, which an optimised build would have dropped."""
    done = run(executable, "run", "--help", environment=environment)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 10


@pytest.mark.parametrize("words", [["run", "--imput", "{}"], ["stauts"], ["run", "--timeout", "soon", "x.sh"]])
def test_what_is_mistyped_is_said_plainly(words: list[str], executable: Path, environment: dict[str, str]) -> None:
    """click loads more when it has something to explain, and the binary must carry that, too."""
    done = run(executable, *words, environment=environment)
    assert done.returncode == 125, done.stderr
    assert words[-1 if words[0] == "stauts" else 1] in done.stderr
    assert "runner.internal" not in done.stderr


def test_a_login_in_another_encoding(executable: Path, environment: dict[str, str]) -> None:
    for locale in ("C", "POSIX", "de_DE.ISO-8859-15", "ja_JP.EUC-JP", "xx_nonsense"):
        done = run(executable, "version", environment=environment | {"LC_ALL": locale})
        assert (done.returncode, done.stderr) == (0, "")


def test_every_module_is_in_the_binary(executable: Path) -> None:
    """Each module of the package, and each that these load when they are imported, is carried or built in."""
    content = (executable.parent / "_internal" / "runner.modules").read_bytes()
    carried = set(marshal.loads(content[4 : 4 + int.from_bytes(content[:4], "big")]))
    carried |= {name for name in sys.stdlib_module_names if _imp.is_frozen(name)}  # in the Python library itself
    carried |= {"importlib.machinery", "importlib.util"}
    [library] = (executable.parent / "_internal").glob("libpython*")
    shown = run("objdump", "-T", library, environment=dict(os.environ)).stdout
    carried |= set(re.findall(r"\bPyInit_(\w+)$", shown, re.MULTILINE))  # in it as compiled code
    packages = ROOT / "runner" / "cronium_runner"
    ours = {
        ".".join(path.relative_to(packages.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in packages.rglob("*.py")
    }
    assert ours - carried == set()
    top = {name.partition(".")[0] for name in carried}
    assert (
        top & {"cronium_controller", "asyncssh", "sqlalchemy", "starlette", "uvicorn", "jwt", "ClusterShell"} == set()
    )
    program = "import sys; before = set(sys.modules)\nfor name in sys.argv[1:]: __import__(name)\n"
    program += "print(*(set(sys.modules) - before))"
    done = run(sys.executable, "-c", program, *sorted(ours), environment=dict(os.environ))
    assert done.returncode == 0, done.stderr
    optional = {"_hashlib", "_uuid", "_bz2", "bz2", "_compression", "_lzma", "lzma", "unicodedata"}
    optional |= {"_yaml", "yaml._yaml", "yaml.cyaml", "typing.io", "typing.re"}
    loaded = set(done.stdout.split()) - optional
    always = {"sys", "builtins", "marshal", "_warnings"}
    assert loaded - carried - always == set()


@pytest.mark.parametrize("command", ["version", "agent", "run"])
def test_modules_are_read_from_one_file(
    command: str, executable: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """One open for all that are imported at once; one for each, in archives of two kinds, was a sixth of a start."""
    log = tmp_path / "calls"
    tracing = [shutil.which("strace") or "", "-e", "trace=open,openat", "-o", str(log)]
    if not tracing[0] or subprocess.run([*tracing, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace is not installed, or not permitted")
    (tmp_path / "script.sh").write_text("echo done\n")
    words = [command, str(tmp_path / "script.sh")] if command == "run" else [command]
    done = subprocess.run(
        [*tracing, str(executable), *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    _, first, after = log.read_text().partition("runner.modules")
    assert first, "the file is there and read"
    assert "base_library.zip" not in after
    assert after.count("runner.modules") <= 0, after


@pytest.mark.parametrize("damage", ["gone", "empty", "shorter", "longer", "index"])
@pytest.mark.parametrize("command", ["agent", "version", "doctor"])
def test_damaged_file_of_modules_is_said(
    damage: str, command: str, executable: Path, environment: dict[str, str]
) -> None:
    """Nothing can be imported to say it."""
    modules = executable.parent / "_internal" / "runner.modules"
    content = modules.read_bytes()
    modules.unlink()
    if damage != "gone":
        changed = {"empty": b"", "shorter": content[:-1], "longer": content + b"x", "index": content[:4] + b"x" * 100}
        modules.write_bytes(changed[damage])
    done = run(executable, command, environment=environment, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (125, "")
    assert str(modules) in done.stderr
    assert done.stderr.endswith("[install.damaged]\n")
    assert len(done.stderr.splitlines()) == 1


def test_checksum_sidecar(binary: Path) -> None:
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    assert Path(f"{binary}.sha256").read_text() == f"{digest}  {binary.name}\n"
