"""The binary where nothing of its own is to be had from the host: no C library, no /proc, no entry in /etc/passwd."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.frozen,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have another root directory"),
]

ROOT = Path(__file__).resolve().parents[2]
HOME = "/home/app"
APP = 4242

JOB = """#!/bin/sh
cronium.setVariable COLOUR blue
cronium.output "{\\"name\\": \\"$(cronium.input name)\\", \\"colour\\": \\"$(cronium.getVariable COLOUR)\\"}"
cat /etc/hostname 2>/dev/null
echo done
exit 3
"""

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(tmp_path: Path, binary: Path) -> Path:
    """A root directory with the binary and a static busybox, and nothing else: no library, no account, no /tmp."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox-static is not installed")
    made = tmp_path / "root"
    (made / "bin").mkdir(parents=True)
    (made / "dev").mkdir()
    shutil.copy(busybox, made / "bin" / "busybox")
    for name in ("sh", "cat", "echo", "ls", "sleep"):
        (made / "bin" / name).symlink_to("busybox")
    shutil.copy(binary, made / "runner")
    (made / "job.sh").write_text(JOB)
    os.mknod(made / "dev" / "null", 0o020666, os.makedev(1, 3))
    (made / "dev" / "null").chmod(0o666)
    (made / "home" / "app").mkdir(parents=True)
    os.chown(made / "home" / "app", APP, APP)
    made.chmod(0o755)
    if subprocess.run(["chroot", made, "/bin/busybox", "true"], check=False).returncode != 0:
        pytest.skip("busybox is not static: busybox-static is not installed")
    return made


@pytest.fixture
def start(root: Path) -> Start:
    """Runs words in `root` with a few variables, as root or as another uid, with /proc mounted or not."""

    def started(
        *words: str, proc: bool = True, uid: int = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        (root / "proc").mkdir(exist_ok=True)
        mount = f"mount -t proc proc '{root}/proc' && " if proc else ""
        settings = [f"{name}={value}" for name, value in {"PATH": "/bin", **(environment or {})}.items()]
        enter = [str(shutil.which("chroot")), f"--userspec={uid}:{uid}", "--groups=", str(root)]
        command = ["unshare", "-m", "sh", "-c", f'{mount}exec env -i "$@"', "sh", *settings, *enter, *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return started


PLACES = {"CRONIUM_INSTALL_DIR": "/installed", "CRONIUM_STATE_DIR": "/state"}


@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no-proc"])
def test_empty_root_directory_runs_a_job(start: Start, root: Path, proc: bool) -> None:
    for _ in range(2):  # installed, and then found
        done = start("/runner", "version", proc=proc, environment=PLACES)
        assert (done.returncode, done.stderr) == (0, "")
    done = start("/runner", "run", "/job.sh", "--input", '{"name": "Ada"}', "--json", proc=proc, environment=PLACES)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["output"] == {"name": "Ada", "colour": "blue"}
    assert start("/runner", "agent", proc=proc, environment=PLACES).returncode == 0


def test_doctor_names_both_c_libraries(start: Start) -> None:
    done = start("/runner", "doctor", environment=PLACES)
    [line] = [line for line in done.stdout.splitlines() if " system " in line]
    assert "not the GNU C library (glibc 2." in line


def test_doctor_names_an_account_without_an_entry(start: Start, root: Path) -> None:
    done = start("/runner", "doctor", environment=PLACES)
    [line] = [line for line in done.stdout.splitlines() if " home directory " in line]
    assert line.split(None, 3)[::3] == ["note", "user 0 has no entry in the password database"]


def test_preload_file_of_the_host_is_not_obeyed(start: Start, root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "ld.so.preload").write_text("/no/such.so\n")
    done = start("/runner", "version", environment=PLACES)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("known", "place"), [(True, HOME + "/.local/lib"), (False, "/tmp")])
def test_account_that_only_getent_knows_has_its_home(start: Start, root: Path, known: bool, place: str) -> None:
    """As of a directory service whose module the launcher, which is static, cannot load."""
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "usr" / "bin").mkdir(parents=True)
    getent = root / "usr" / "bin" / "getent"
    answer = f"echo zoe:x:{APP}:{APP}::{HOME}:/bin/sh{'' if known else '; exit 2'}"
    getent.write_text(f'#!/bin/sh\n[ "$*" = "passwd {APP}" ] || [ "$*" = "passwd zoe" ] || exit 2\n{answer}\n')
    getent.chmod(0o755)
    state = {} if known else {"CRONIUM_STATE_DIR": "/tmp/state"}
    done = start("/runner", "run", "/job.sh", "--input", '{"name": "Zoe"}', uid=APP, environment=state)
    assert (done.returncode, done.stdout) == (3, "done\n"), done.stderr
    assert list((root / place.lstrip("/")).glob("cronium-runner*/*/contents"))
    assert (root / HOME.lstrip("/") / ".local" / "state").exists() == known


def test_named_install_directory_stands_alone(start: Start, root: Path) -> None:
    """Who names one does not want another one used behind their back."""
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "installed").mkdir(mode=0o755)
    done = start("/runner", "version", environment=PLACES)
    assert (done.returncode, done.stdout) == (125, "")
    assert "/installed has mode 0755, not 0700: set CRONIUM_INSTALL_DIR to" in done.stderr
    assert list((root / "tmp").iterdir()) == []


def test_install_directory_that_is_there_is_no_safer_than_its_parent(start: Start, root: Path) -> None:
    (root / "open").mkdir()
    (root / "open").chmod(0o777)
    (root / "open" / "installed").mkdir(mode=0o700)
    done = start("/runner", "version", environment=PLACES | {"CRONIUM_INSTALL_DIR": "/open/installed"})
    assert (done.returncode, done.stdout) == (125, "")
    assert "/open can be written by every user (mode 0777)" in done.stderr
    assert list((root / "open" / "installed").iterdir()) == []


def test_another_account_is_not_reached_without_env(start: Start, root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\napp:x:{APP}:{APP}::{HOME}:/bin/sh\n")
    done = start("/runner", "run", "/job.sh", "--run-as", "app", environment=PLACES)
    assert (done.returncode, done.stdout) == (125, "")
    assert "there is no env on this host, in /usr/bin or /bin" in done.stderr
    assert done.stderr.endswith(" [run_as.refused]\n")


def test_damaged_libraries_of_the_form_are_named(start: Start, root: Path) -> None:
    assert start("/runner", "version", environment=PLACES).returncode == 0
    [form] = (root / "installed").iterdir()
    [linker] = (form / "_internal").glob("ld-linux*")
    linker.unlink()
    done = start(f"/installed/{form.name}/cronium-runner", "version", environment=PLACES)
    assert done.returncode == 125
    assert done.stderr == (
        f"cronium-runner: /installed/{form.name} cannot be started (No such file or directory); "
        "install the runner again [install.damaged]\n"
    )
    assert start("/runner", "version", environment=PLACES).returncode == 0, "the one file puts it back"


def other_byte(at: float) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        place = int(len(content) * at)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return changed


def in_list(content: bytes) -> bytes:
    at = content.rindex(b"cronium-runner bundle 1\n")
    place = content.index(b" helpers/client\n", at) - 1  # the last digit of its size
    return content[:place] + (b"1" if content[place : place + 1] != b"1" else b"2") + content[place + 1 :]


def first_half(content: bytes) -> bytes:
    """Of which the pages of the pack's end are not there at all."""
    return content[: len(content) // 2]


def in_digest(content: bytes) -> bytes:
    """Nothing is of another size: only a comparison of the list with the one in the pack shows it."""
    place = content.index(b" helpers/client\n", content.index(b"\ns ")) - 1
    return content[:place] + (b"1" if content[place : place + 1] != b"1" else b"2") + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [other_byte(0.5), other_byte(0.999), lambda content: content[:-1000], first_half, in_list, in_digest],
    ids=["pack", "end-of-pack", "shorter", "half", "list", "digest"],
)
def test_damaged_one_file_binary_installs_nothing(start: Start, root: Path, damage: Callable[[bytes], bytes]) -> None:
    (root / "runner").write_bytes(damage((root / "runner").read_bytes()))
    done = start("/runner", "version", environment=PLACES)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("cronium-runner: the runner cannot be installed")
    assert "get the runner again" in done.stderr
    assert done.stderr.endswith(" [install.unusable]\n")
    assert len(done.stderr.splitlines()) == 1
    assert not (root / "installed").exists() or list((root / "installed").iterdir()) == []


def test_bytes_behind_the_one_file_binary_change_nothing(start: Start, root: Path) -> None:
    with (root / "runner").open("ab") as file:
        file.write(b"more" * 100)
    assert start("/runner", "version", environment=PLACES).returncode == 0


def test_one_file_binary_needs_no_dynamic_linker(binary: Path) -> None:
    shown = subprocess.run(["objdump", "-p", str(binary)], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in shown
    assert "NEEDED" not in shown
