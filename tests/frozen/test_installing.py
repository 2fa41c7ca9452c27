"""`install DIR` by the launcher, which is C, and by the installed form, which is Python: one table of cases."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.frozen

ROOT = Path(__file__).resolve().parents[2]
OTHER = 65534


class Case(NamedTuple):
    """`arrange(goal)` prepares the directory that is to become the installed form, its parent being there. `refusal` is
    part of the sentence; an empty one: it is installed. `as_root`: only root can arrange it."""

    arrange: Callable[[Path], object]
    refusal: str = ""
    as_root: bool = False


def directory(mode: int) -> Callable[[Path], None]:
    def arrange(goal: Path) -> None:
        goal.mkdir()
        goal.chmod(mode)

    return arrange


def link(goal: Path) -> None:
    (goal.parent / "elsewhere").mkdir(mode=0o700)
    goal.symlink_to(goal.parent / "elsewhere")


def occupied(goal: Path) -> None:
    directory(0o700)(goal)
    (goal / "letter").write_text("mine")


def of_another(goal: Path) -> None:
    directory(0o700)(goal)
    os.chown(goal, OTHER, OTHER)


def parent_of_another(goal: Path) -> None:
    os.chown(goal.parent, OTHER, OTHER)


def link_above(goal: Path) -> None:
    """A link on the way in a directory that all may write."""
    aside = goal.parent.with_name("aside")
    goal.parent.rename(aside)
    goal.parent.symlink_to(aside)
    goal.parent.parent.chmod(0o777)


CASES = {
    "nothing-there": Case(lambda goal: None),
    "parent-missing": Case(lambda goal: goal.parent.rmdir()),
    "empty-directory": Case(directory(0o700)),
    "open-to-others": Case(directory(0o755), "has mode 0755, not 0700"),
    "set-id-bit": Case(directory(0o2700), "has mode 2700, not 0700"),
    "file": Case(lambda goal: goal.write_text(""), "is not a directory"),
    "link": Case(link, "is not a directory"),
    "occupied": Case(occupied, "already holds something else"),
    "parent-open-to-all": Case(lambda goal: goal.parent.chmod(0o777), "can be written by every user (mode 0777)"),
    "link-above": Case(link_above, "can be written by every user (mode 0777)"),
    "of-another": Case(of_another, f"belongs to uid {OTHER}", as_root=True),
    "parent-of-another": Case(parent_of_another, f"belongs to uid {OTHER}", as_root=True),
}


def run(executable: Path, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    command = [str(executable), *map(str, words)]
    return subprocess.run(command, env=kept, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, binary: Path) -> Path:
    form = tmp_path_factory.mktemp("installing") / "form"
    assert run(binary, "install", form).returncode == 0
    return form / "cronium-runner"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Mode and size (of files) of all below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = status.st_mode, status.st_size * stat.S_ISREG(status.st_mode)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["launcher", "python"])
def test_table_of_installing(name: str, form: str, binary: Path, installed: Path, tmp_path: Path) -> None:
    case = CASES[name]
    if case.as_root and os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    goal = tmp_path / "above" / "parent" / "goal"
    goal.parent.mkdir(parents=True)
    case.arrange(goal)
    before = tree(tmp_path)
    done = run(binary if form == "launcher" else installed, "install", goal)
    if case.refusal:
        assert (done.returncode, done.stdout) == (125, "")
        assert case.refusal in done.stderr
        assert tree(tmp_path) == before
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{goal}/cronium-runner\n", "")
        assert tree(goal) == tree(installed.parent)
        assert [path.name for path in goal.parent.iterdir()] == ["goal"]


@pytest.mark.parametrize("form", ["launcher", "python"])
def test_directory_is_meant_from_the_current_one_on(form: str, binary: Path, installed: Path, tmp_path: Path) -> None:
    done = run(binary if form == "launcher" else installed, "install", "none/.././/form-of-a-test/", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/form-of-a-test/cronium-runner\n"), done.stderr
    assert os.listdir(tmp_path) == ["form-of-a-test"]
    assert not os.path.exists("/form-of-a-test")


@pytest.mark.parametrize("form", ["launcher", "python"])
@pytest.mark.parametrize("damage", ["contents", "helpers/client", "_internal/boot", "helpers"])
def test_damaged_copy_of_the_build_is_replaced(
    form: str, damage: str, binary: Path, installed: Path, tmp_path: Path
) -> None:
    """By its list of contents, or by its name, which says version and build."""
    name = "-".join((installed.parent / "contents").read_text().splitlines()[1].split()[:2])
    goal = tmp_path / name
    assert run(binary, "install", goal).returncode == 0
    if (goal / damage).is_dir():
        shutil.rmtree(goal / damage)
    else:
        (goal / damage).unlink()
    done = run(binary if form == "launcher" else installed, "install", goal)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(goal) == tree(installed.parent)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("form", ["launcher", "python"])
def test_link_in_a_damaged_copy_is_removed_and_not_followed(
    form: str, binary: Path, installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "letter").write_text("mine")
    goal = tmp_path / "goal"
    assert run(binary, "install", goal).returncode == 0
    shutil.rmtree(goal / "helpers")
    (goal / "helpers").symlink_to(tmp_path / "elsewhere")
    assert run(binary if form == "launcher" else installed, "install", goal).returncode == 0
    assert tree(goal) == tree(installed.parent)
    assert (tmp_path / "elsewhere" / "letter").read_text() == "mine"
