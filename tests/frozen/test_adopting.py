"""Libraries of the installed form that its owner has exchanged, by the launcher, which is C, and by Python."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import signing
from signing import Etc

pytestmark = pytest.mark.frozen

ACCOUNT = 4242
"""Whose form it is when root runs the tests: root's own is never adopted."""
LIBC = "_internal/libc.so.6"
CLIENT = "helpers/client"
IS_ROOT = os.geteuid() == 0


def run(*words: object, root: Path | None = None, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """As the form's owner. `root`: where a carrier installs itself. A `prefix` is run as we are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    if root is not None:
        kept |= {"CRONIUM_INSTALL_DIR": str(root), "CRONIUM_STATE_DIR": str(root.parent / "state")}
    command = [*prefix, *map(str, words)]
    if IS_ROOT and not prefix:
        command = [*as_account(), *command]
    return subprocess.run(
        command, env=kept, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def as_account() -> tuple[str, ...]:
    return ("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups") if IS_ROOT else ()


class Owned(NamedTuple):
    """A folder of the form's owner, which only they can look into. `carrier` is in it, and `form` what it installed."""

    folder: Path
    carrier: Path
    form: Path

    def start(self, *words: object) -> subprocess.CompletedProcess[str]:
        """By the installed executable."""
        return run(self.form / "cronium-runner", *words, root=self.form.parent)

    def carry(self, *words: object) -> subprocess.CompletedProcess[str]:
        """By the carrier."""
        return run(self.carrier, *words, root=self.form.parent)

    def adopt(self, *, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        words = self.form / "cronium-runner", "install", "--adopt", self.form
        return run(*words, root=self.form.parent, prefix=prefix)

    def listed(self) -> str:
        return (self.form / "contents").read_text()


def given(path: Path) -> Path:
    if IS_ROOT:
        for each in (path, *path.rglob("*")):
            os.chown(each, ACCOUNT, ACCOUNT, follow_symlinks=False)
    return path


@pytest.fixture(scope="module")
def pristine(binary: Path) -> Iterator[Owned]:
    """One that no test changes."""
    folder = Path(tempfile.mkdtemp(prefix="cronium-adopting-", dir="/var/tmp"))
    try:
        carrier = folder / "carrier"
        shutil.copy(binary, carrier)
        carrier.chmod(0o755)
        (folder / "root").mkdir(mode=0o700)
        given(folder)
        done = run(carrier, "version", root=folder / "root")
        assert (done.returncode, done.stderr) == (0, "")
        [form] = (folder / "root").iterdir()
        yield Owned(folder, carrier, form)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def copied(original: Owned) -> Iterator[Owned]:
    folder = Path(tempfile.mkdtemp(prefix="cronium-adopting-", dir="/var/tmp"))
    try:
        shutil.copytree(original.form.parent, folder / "root", symlinks=True)
        given(folder)
        yield Owned(folder, original.carrier, folder / "root" / original.form.name)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def owned(pristine: Owned) -> Iterator[Owned]:
    """A form whose C library was exchanged by one that has a few bytes more."""
    with copied(pristine) as made:
        exchange(made.form / LIBC)
        yield made


@pytest.fixture(scope="module")
def once(pristine: Owned) -> Iterator[Owned]:
    """One that was adopted, and that no test changes."""
    with copied(pristine) as made:
        exchange(made.form / LIBC)
        assert made.adopt().returncode == 0
        yield made


@pytest.fixture
def adopted(once: Owned) -> Iterator[Owned]:
    with copied(once) as made:
        yield made


def exchange(library: Path) -> None:
    library.write_bytes(library.read_bytes() + bytes(16))


def other_byte(library: Path) -> None:
    """Of the same size, outside what is loaded: section headers are at the end."""
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    library.write_bytes(content)


def test_exchanged_library_runs_once_it_is_adopted(owned: Owned) -> None:
    done = owned.start("version")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"{LIBC} is not as it was installed" in done.stderr
    built, exchanged = owned.listed(), (owned.form / LIBC).read_bytes()
    done = owned.adopt()
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{LIBC}: SHA-256 was ")
    assert last == f"{owned.form}: adopted, 1 changed"
    assert owned.listed().startswith(built)
    assert owned.listed().removeprefix(built).split(" ")[0::3] == ["a", f"{LIBC}\n"]
    for call in (owned.start, owned.carry, owned.start):
        done = call("version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(", adopted)\n")
        assert json.loads(call("version", "--json").stdout)["adopted"] == [LIBC]
        script = owned.folder / "script.sh"
        script.write_text("echo ran\n")
        script.chmod(0o644)
        done = call("run", script)
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert f"adopted: {LIBC} exchanged by the owner" in owned.start("doctor").stdout
    assert (owned.form / LIBC).read_bytes() == exchanged
    assert [path.name for path in owned.form.parent.iterdir()] == [owned.form.name]
    done = owned.adopt()
    assert (done.returncode, done.stdout) == (0, f"{owned.form}: nothing has changed\n")


def test_adopted_library_can_be_put_back(adopted: Owned, pristine: Owned) -> None:
    shutil.copyfile(pristine.form / LIBC, adopted.form / LIBC)
    assert adopted.start("version").returncode == 125
    assert f"{LIBC}: SHA-256 was " in adopted.adopt().stdout
    assert adopted.listed() == pristine.listed()
    assert adopted.carry("version").stdout == pristine.carry("version").stdout


def test_carrier_does_not_adopt(owned: Owned) -> None:
    """It would first mend the form that is to be adopted."""
    exchanged = (owned.form / LIBC).read_bytes()
    for words in (("--adopt", owned.form), (owned.form, "--adopt")):
        done = owned.carry("install", *words)
        assert (done.returncode, done.stdout) == (125, "")
        assert "[usage.invalid]" in done.stderr
    assert (owned.form / LIBC).read_bytes() == exchanged


def test_copy_of_an_adopted_form_is_adopted(adopted: Owned) -> None:
    copy = adopted.folder / "copy"
    assert adopted.start("install", copy).returncode == 0
    assert (copy / LIBC).read_bytes() == (adopted.form / LIBC).read_bytes()
    assert run(copy / "cronium-runner", "version").stdout.endswith(", adopted)\n")


def appended(text: str) -> Callable[[Owned], None]:
    """More lines in the list of contents; the digest of the exchanged C library is that of the adopted one."""

    def arrange(owned: Owned) -> None:
        *built, adopted = owned.listed().splitlines(keepends=True)
        _, size, digest, _ = adopted.split(" ")
        (owned.form / "contents").write_text("".join(built) + text.format(size=size, digest=digest))

    return arrange


def emptied(name: str) -> Callable[[Owned], object]:
    return lambda owned: (owned.form / name).write_bytes(b"")


def opened(owned: Owned) -> None:
    (owned.form / LIBC).chmod(0o722)


class Case(NamedTuple):
    """What became of an adopted form, what Python says of it, and the carrier: `built`: it puts back what was built.
    An empty sentence: it runs."""

    arrange: Callable[[Owned], object]
    python: str
    carrier: str


DAMAGED = "is not as it was installed"
KEPT = "has libraries that its owner exchanged, and is damaged"
UNREADABLE = "is not beside its list of contents"
CASES = {
    "as-adopted": Case(lambda owned: None, "", ""),
    "list-as-written": Case(appended("a {size} {digest} _internal/libc.so.6\n"), "", ""),
    "times-changed": Case(lambda owned: os.utime(owned.form / LIBC), "", ""),
    "library-exchanged-again": Case(lambda owned: other_byte(owned.form / LIBC), DAMAGED, DAMAGED),
    "library-of-other-size": Case(lambda owned: exchange(owned.form / LIBC), DAMAGED, KEPT),
    "library-opened": Case(opened, DAMAGED, KEPT),
    "helper-emptied": Case(emptied(CLIENT), DAMAGED, KEPT),
    "other-library-exchanged": Case(lambda owned: exchange(owned.form / "_internal/libz.so.1"), DAMAGED, KEPT),
    "list-is-the-built-one": Case(appended(""), DAMAGED, "built"),
    "list-emptied": Case(emptied("contents"), UNREADABLE, "built"),
    "no-such-file": Case(appended("a {size} {digest} _internal/none.so.1\n"), UNREADABLE, "built"),
    "no-library": Case(appended("a {size} {digest} helpers/client\n"), UNREADABLE, "built"),
    "no-digest": Case(appended("a {size} _internal/libc.so.6\n"), UNREADABLE, "built"),
    "short-digest": Case(appended("a {size} 1234 _internal/libc.so.6\n"), UNREADABLE, "built"),
    "size-is-no-number": Case(appended("a 1x {digest} _internal/libc.so.6\n"), UNREADABLE, "built"),
    "cut-off": Case(appended("a {size} {digest} _internal/libc.so.6"), UNREADABLE, "built"),
    "line-between": Case(appended("f 0600 1 x\na {size} {digest} _internal/libc.so.6\n"), DAMAGED, "built"),
    "line-behind": Case(appended("a {size} {digest} _internal/libc.so.6\nf 0600 1 x\n"), UNREADABLE, "built"),
    "empty-line": Case(appended("\na {size} {digest} _internal/libc.so.6\n"), UNREADABLE, "built"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["launcher", "python"])
def test_table_of_adopted_forms(name: str, form: str, adopted: Owned, pristine: Owned) -> None:
    owned = adopted
    CASES[name].arrange(owned)
    before = (owned.form / LIBC).read_bytes()
    expected = CASES[name].carrier if form == "launcher" else CASES[name].python
    done = (owned.carry if form == "launcher" else owned.start)("version")
    if expected in ("", "built"):
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(", adopted)\n") == (expected == "")
    else:
        assert (done.returncode, done.stdout) == (125, "")
        assert expected in done.stderr
    wanted = pristine.form / LIBC if expected == "built" else None
    assert (owned.form / LIBC).read_bytes() == (wanted.read_bytes() if wanted else before)
    assert [path.name for path in owned.form.parent.iterdir()] == [owned.form.name]


def test_install_into_keeps_an_adopted_form(adopted: Owned, pristine: Owned) -> None:
    """By the carrier, and by an installed form as it was built, which has another copy of the library."""
    exchanged = (adopted.form / LIBC).read_bytes()
    other = adopted.folder / "other"
    assert run(adopted.carrier, "install", other, root=adopted.folder / "elsewhere").returncode == 0
    for executable in (adopted.carrier, other / "cronium-runner"):
        assert run(executable, "install", adopted.form).returncode == 0
        assert (adopted.form / LIBC).read_bytes() == exchanged
        content = (adopted.form / CLIENT).read_bytes()
        (adopted.form / CLIENT).write_bytes(b"")
        done = run(executable, "install", adopted.form)
        assert (done.returncode, done.stdout) == (125, "")
        assert KEPT in done.stderr
        (adopted.form / CLIENT).write_bytes(content)
    assert (adopted.form / LIBC).read_bytes() == exchanged


def linked(name: str) -> Callable[[Owned], None]:
    """A link to the same content."""

    def arrange(owned: Owned) -> None:
        aside = owned.folder / "aside"
        (owned.form / name).rename(aside)
        (owned.form / name).symlink_to(aside)

    return arrange


def of_root(owned: Owned) -> None:
    os.chown(owned.form / LIBC, 0, 0)
    (owned.form / LIBC).chmod(0o600)


def text(owned: Owned) -> None:
    (owned.form / "_internal/libz.so.1").write_text("INPUT(-lz)\n")


def of_another_machine(owned: Owned) -> None:
    library = owned.form / "_internal/libz.so.1"
    content = bytearray(library.read_bytes())
    content[18:20] = b"\xf3\0"
    library.write_bytes(content)


REFUSALS: dict[str, tuple[Callable[[Owned], object], str, str]] = {
    "launcher": (lambda owned: exchange(owned.form / "cronium-runner"), "install.damaged", "only shared libraries"),
    "modules": (lambda owned: exchange(owned.form / "_internal/boot"), "install.damaged", "only shared libraries"),
    "helper": (lambda owned: exchange(owned.form / CLIENT), "install.damaged", "only shared libraries"),
    "link-changed": (lambda owned: emptied_link(owned), "install.damaged", "is not the link that it was"),
    "text": (text, "install.damaged", "is no shared library for this machine"),
    "other-machine": (of_another_machine, "install.damaged", "is no shared library for this machine"),
    "mode": (lambda owned: (owned.form / LIBC).chmod(0o755), "install.unusable", "has mode 0755, not 0"),
    "gone": (lambda owned: (owned.form / "_internal/libz.so.1").unlink(), "install.unusable", "No such file"),
    "library-is-a-link": (linked(LIBC), "install.unusable", "symbolic links"),
    "folder-is-a-link": (linked("helpers"), "install.unusable", "helpers is not a directory"),
    "list-is-a-link": (linked("contents"), "install.unusable", "symbolic links"),
    "list-without-digests": (lambda owned: old_list(owned), "install.not_adoptable", "0.1.0"),
    "list-unreadable": (lambda owned: (owned.form / "contents").write_text("x"), "install.", "contents"),
    "group-writable": (lambda owned: owned.form.chmod(0o720), "install.unusable", "mode 0720"),
    "above-open-to-all": (lambda owned: owned.form.parent.chmod(0o777), "install.unusable", "(mode 0777)"),
}


def emptied_link(owned: Owned) -> None:
    link = next(path for path in (owned.form / "helpers" / "bin").iterdir() if path.is_symlink())
    link.unlink()
    link.symlink_to("../python/cronium.py")


def old_list(owned: Owned) -> None:
    lines = owned.listed().splitlines(keepends=True)
    (owned.form / "contents").write_text("".join(line for line in lines if not line.startswith("s ")))


def tree(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.is_symlink() or path.is_dir() or path.read_bytes())
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_adopted(name: str, owned: Owned, pristine: Owned) -> None:
    """By another form, as the one that is to be adopted may not start any more. Nothing is changed."""
    arrange, code, sentence = REFUSALS[name]
    arrange(owned)
    before = tree(owned.form)
    done = run(pristine.form / "cronium-runner", "install", "--adopt", owned.form)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"[{code}" in done.stderr
    assert sentence in done.stderr
    assert tree(owned.form) == before


def test_link_to_a_form_is_not_adopted(owned: Owned) -> None:
    (owned.folder / "link").symlink_to(owned.form)
    done = run(owned.form / "cronium-runner", "install", "--adopt", owned.folder / "link")
    assert (done.returncode, done.stdout) == (125, "")
    assert "is not a directory" in done.stderr


@pytest.mark.skipif(not IS_ROOT, reason="needs root, to give files away and to be root")
def test_root_and_strangers_adopt_nothing(owned: Owned, pristine: Owned) -> None:
    before = owned.listed()
    done = owned.adopt(prefix=("env",))
    assert (done.returncode, done.stdout) == (125, "")
    assert "[install.not_adoptable]" in done.stderr
    assert owned.listed() == before
    of_root(owned)
    done = run(pristine.form / "cronium-runner", "install", "--adopt", owned.form)
    assert (done.returncode, done.stdout) == (125, "")
    assert "[install.unusable]" in done.stderr
    assert owned.listed() == before
    os.chown(owned.form, ACCOUNT + 1, ACCOUNT + 1)
    done = run(pristine.form / "cronium-runner", "install", "--adopt", owned.form)
    assert (done.returncode, done.stdout) == (125, "")


@pytest.mark.skipif(not IS_ROOT, reason="needs root, to be root")
def test_root_runs_no_exchanged_library(adopted: Owned) -> None:
    """Whoever has written the list; the carrier puts back what was built."""
    for each in (adopted.folder, *adopted.folder.rglob("*")):
        os.chown(each, 0, 0, follow_symlinks=False)
    done = run(adopted.form / "cronium-runner", "version", prefix=("env",))
    assert (done.returncode, done.stdout) == (125, "")
    assert f"{LIBC} is not as it was installed, and root's runner uses no exchanged libraries" in done.stderr
    done = run(adopted.carrier, "version", root=adopted.form.parent, prefix=("env",))
    assert (done.returncode, done.stderr) == (0, "")
    assert "adopted" not in done.stdout
    assert "\na " not in adopted.listed()


@pytest.mark.skipif(signing.why_no_own_etc() is not None, reason=str(signing.why_no_own_etc()))
def test_host_of_signers_runs_no_exchanged_library(owned: Owned, tmp_path: Path) -> None:
    etc = Etc(tmp_path / "etc")
    etc.allow("alice ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw")
    within = etc.within(as_account())
    before = owned.listed()
    done = owned.adopt(prefix=within)
    assert (done.returncode, done.stdout) == (125, "")
    assert "/etc/cronium-runner/allowed_signers" in done.stderr
    assert "[install.not_adoptable]" in done.stderr
    assert owned.listed() == before
    assert owned.adopt().returncode == 0
    done = run(owned.form / "cronium-runner", "version", prefix=within)
    assert (done.returncode, done.stdout) == (125, "")
    assert "this host runs what is signed only" in done.stderr
    done = run(owned.carrier, "version", root=owned.form.parent, prefix=within)
    assert (done.returncode, done.stderr) == (0, "")
    assert owned.listed() == before


def test_adopting_many_times_at_once(owned: Owned) -> None:
    words = [*as_account(), str(owned.form / "cronium-runner"), "install", "--adopt", str(owned.form)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert sorted(text.splitlines()[-1].removeprefix(f"{owned.form}: ") for text in printed) == [
        "adopted, 1 changed", *["nothing has changed"] * 3
    ]  # fmt: skip
    assert not list(owned.form.glob("*.tmp"))
    assert owned.start("version").returncode == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("call", ["renameat,renameat2,rename", "fsync"])
def test_killed_adoption_leaves_the_form_as_it_was(owned: Owned, call: str) -> None:
    before = owned.listed()
    inject = ("strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:error=EIO")
    done = owned.adopt(prefix=(*as_account(), *inject))
    assert done.returncode != 0
    assert done.stdout == ""
    assert owned.listed() == before
    assert len(list(owned.form.glob("contents.*.tmp"))) == 1
    assert owned.start("version").returncode == 125
    assert owned.adopt().returncode == 0
    assert not list(owned.form.glob("*.tmp"))
    assert owned.start("version").returncode == 0


def test_adoption_on_a_full_disk_changes_nothing(owned: Owned) -> None:
    before = owned.listed()
    done = owned.adopt(prefix=(*as_account(), "sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "sh"))
    assert (done.returncode, done.stdout) == (125, "")
    assert "[install.unusable]" in done.stderr
    assert owned.listed() == before
    assert not list(owned.form.glob("*.tmp"))
