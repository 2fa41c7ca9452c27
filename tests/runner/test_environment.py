"""The script's environment: what is taken out, what is put in, and in which order."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_runner.environment import DEFAULT_PATH, for_interpreter, for_scripts, login_environment, script_environment
from cronium_runner.install import HelperFolder

OWN = {"CRONIUM_HELPER_MODE": "bundled", "CRONIUM_WORK_DIR": "/w"}
HELPERS = HelperFolder.below("/h")
FOR_ALL = {"PYTHONPATH": "/h/modules", "NODE_PATH": "/h/node", "PYTHONUNBUFFERED": "1"}


def made(
    login: dict[str, str], manifest: dict[str, str] | None = None, execution: dict[str, str] | None = None
) -> dict[str, str]:
    return script_environment(
        for_scripts(login), manifest=manifest or {}, own=OWN, helpers=HELPERS, execution=execution
    )


def test_bootloader_traces_are_removed_and_the_launchers_changes_undone() -> None:
    login = {
        "CRONIUM_LOGIN_LD_LIBRARY_PATH": "/mine",
        "CRONIUM_LOGIN_LD_PRELOAD": "/my.so",
        "_PYI_ARCHIVE_FILE": "/x/cronium-runner",
        "_PYI_PARENT_PROCESS_LEVEL": "1",
        "_MEIPASS2": "/tmp/_MEI1",
        "PYINSTALLER_RESET_ENVIRONMENT": "1",
        "LANG": "C",
    }
    assert login_environment(login) == {"LD_LIBRARY_PATH": "/mine", "LD_PRELOAD": "/my.so", "LANG": "C"}


def test_empty_library_path_of_the_login_stays_empty() -> None:
    login = {"CRONIUM_LOGIN_LD_LIBRARY_PATH": "", "_PYI_ARCHIVE_FILE": "/x/r"}
    assert login_environment(login) == {"LD_LIBRARY_PATH": ""}


def test_library_path_is_the_logins_own_without_a_launcher() -> None:
    login = {"LD_LIBRARY_PATH": "/mine", "CRONIUM_LOGIN_LD_LIBRARY_PATH": "/other"}
    assert login_environment(login) == login


def test_later_layers_win() -> None:
    login = {"A": "login", "B": "login", "C": "login", "PATH": "/bin"}
    manifest = {"B": "manifest", "C": "manifest", "CRONIUM_WORK_DIR": "/evil"}
    seen = made(login, manifest, {"C": "execution"})
    assert seen == OWN | FOR_ALL | {"A": "login", "B": "manifest", "C": "execution", "PATH": "/h/bin:/bin"}


def test_the_runners_own_settings_and_the_token_are_not_handed_on() -> None:
    names = (
        "API_TOKEN",
        "API_ENDPOINT",
        "STATE_DIR",
        "INSTALL_DIR",
        "HELPER_CLIENT",
        "EXECUTION_ID",
        "ANYTHING",
    )
    seen = made({f"CRONIUM_{name}": "secret" for name in names})
    assert "secret" not in seen.values()
    assert {name for name in seen if name.startswith("CRONIUM_")} == set(OWN)


@pytest.mark.parametrize("login", [{}, {"PATH": ""}])
def test_a_login_without_path_still_finds_commands(login: dict[str, str]) -> None:
    assert made(login)["PATH"] == f"/h/bin:{DEFAULT_PATH}"


def test_the_manifests_path_comes_after_the_helpers() -> None:
    assert made({"PATH": "/bin"}, {"PATH": "/opt/bin"})["PATH"] == "/h/bin:/opt/bin"


def test_bash_env_is_the_logins_own() -> None:
    assert made({"BASH_ENV": "/etc/b"})["BASH_ENV"] == "/etc/b"
    assert "BASH_ENV" not in made({})


def test_every_script_finds_the_libraries_of_both_languages() -> None:
    plain = made({"PYTHONPATH": "/p", "NODE_PATH": "/n", "NODE_OPTIONS": "--no-warnings"})
    assert (plain["PYTHONPATH"], plain["NODE_PATH"], plain["NODE_OPTIONS"]) == (
        "/h/modules:/p",
        "/h/node:/n",
        "--no-warnings",
    )
    assert for_interpreter(plain, "bash", HELPERS) == plain
    python = for_interpreter(plain, "python", HELPERS)
    assert python == plain | {"PYTHONPATH": "/h/python:/p"}
    node = for_interpreter(plain, "node", HELPERS)
    assert node == plain | {"NODE_OPTIONS": "--require /h/node/cronium.js --no-warnings"}


@pytest.mark.parametrize("name", ["PYTHONPATH", "NODE_PATH"])
def test_no_empty_element_which_would_mean_the_current_folder(name: str) -> None:
    assert made({name: ""})[name] == FOR_ALL[name]


@pytest.mark.parametrize(
    ("login", "manifest", "seen"),
    [(None, None, "1"), ("", None, ""), ("0", None, "0"), ("x", "", ""), (None, "", ""), (None, "2", "2")],
)
def test_python_is_unbuffered_unless_told_otherwise(login: str | None, manifest: str | None, seen: str) -> None:
    layers = [{} if value is None else {"PYTHONUNBUFFERED": value} for value in (login, manifest)]
    assert made(*layers)["PYTHONUNBUFFERED"] == seen


def test_inputs_are_left_alone() -> None:
    login, script = {"PATH": "/bin"}, {"PYTHONPATH": "/h/modules:/p"}
    made(login)
    for_interpreter(script, "python", HELPERS)
    assert (login, script) == ({"PATH": "/bin"}, {"PYTHONPATH": "/h/modules:/p"})


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", ["plain", "with space", 'quote"d', "back\\slash", 'both \\" of them'])
def test_node_understands_the_preload(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "cronium.js").write_text("globalThis.loaded = __filename;")
    (folder / "other.js").write_text("exports.found = true;")
    helpers = HelperFolder("", "", str(folder), "")
    plain = script_environment(for_scripts(os.environ), manifest={}, own={}, helpers=helpers)
    environment = for_interpreter(plain, "node", helpers)
    program = "console.log(JSON.stringify([loaded, require('other').found]))"
    done = subprocess.run(["node", "-e", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(folder / "cronium.js"), True]


def test_python_finds_the_folder(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("X = 1")
    helpers = HelperFolder("", str(tmp_path), "", "/h/modules")
    plain = script_environment(for_scripts(os.environ), manifest={}, own={}, helpers=helpers)
    environment = for_interpreter(plain, "python", helpers)
    subprocess.run([sys.executable, "-c", "import only_here"], env=environment, check=True)
