"""`--run-as` without the binary, and its parts by themselves. With the binary: tests/frozen/test_run_as.py."""

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounts import Account, throw_away_account
from cronium_runner import account, as_other, hand_over, location, packing, run_as, ustar
from cronium_runner.bundle import Bundle
from cronium_runner.errors import RunnerError
from cronium_runner.jobdir import StateDirectory
from cronium_runner.submission import Archive, Folder, Script, Source, Submission, from_frame, to_frame
from cronium_runner.wire import codes, frames
from cronium_runner.wire.access import Access
from cronium_runner.wire.collection import REPORT
from cronium_runner.wire.limits import Limits
from runner_process import PATIENCE, Host

making_accounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="needs root and useradd, to make accounts"
)
NOBODY = account.Account("nobody", 65534, 65534, "/nonexistent", "/bin/sh")
BUNDLE = Bundle(
    "cronium-runner bundle 1\n1.0 abc abc 2025-01-01T00:00:00Z\nl ../client helpers/bin/x\nf 0700 3 helpers/client\n"
)


@pytest.fixture
def target() -> Iterator[Account]:
    with throw_away_account() as made:
        yield made


# -- from source -------------------------------------------------------------------------------------------------------


def test_an_unknown_account_is_refused(host: Host) -> None:
    result = host.run_json("--run-as", "nonesuch-account", host.script("true"))
    assert (result["exit status"], result["error"]["code"]) == (125, "run_as.unknown_user")
    for words in (["status", "x"], ["attach", "x"], ["cancel", "x"], ["list"], ["agent"]):
        done = host.run(words[0], "--run-as", "nonesuch-account", *words[1:])
        assert (done.returncode, b"[run_as.unknown_user]" in done.stderr) == (125, True), words


def test_ones_own_account_is_no_other(host: Host) -> None:
    done = host.run("run", "--run-as", account.own_name(), "--execution-id", "own", host.script("echo here"))
    assert (done.returncode, done.stdout) == (0, b"here\n")
    assert host.executions() == ["own"]


@making_accounts
def test_files_that_the_target_cannot_read_are_said_so(host: Host, target: Account, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    os.symlink(sys.executable, hidden / "python3")
    host.executable = (str(hidden / "python3"), "-c", "from cronium_runner.cli import main; raise SystemExit(main())")
    host.environment["PYTHONPATH"] = ":".join(path for path in sys.path if path)
    result = host.run_json("--run-as", target.name, host.script("true"))
    assert (result["exit status"], result["error"]["code"]) == (125, "run_as.no_runner")
    assert str(hidden) in result["error"]["message"]


@making_accounts
def test_a_checkout_that_everybody_may_read_serves(host: Host, target: Account) -> None:
    """With a Python of the system and copies of what is imported, as in a checkout below /opt."""
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if _is_new_enough(path)), None)
    if python is None:
        pytest.skip("the system has no Python from 3.11 on")
    import click
    import yaml

    import cronium_helpers
    import cronium_runner

    checkout = Path("/opt") / f"cronium-test-{os.urandom(4).hex()}"
    try:
        for module in (click, yaml, cronium_runner, cronium_helpers):
            folder = Path(str(module.__file__)).parent
            shutil.copytree(folder, checkout / folder.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        subprocess.run(["chmod", "-R", "a+rX", checkout], check=True)
        host.executable = (python, "-m", "cronium_runner")
        host.environment["PYTHONPATH"] = str(checkout)
        done = host.run(
            "run", "--run-as", target.name, host.script("id -un; cronium.output k v; echo ${PYTHONPATH##*/}")
        )
        assert done.stdout.decode() == f"{target.name}\nmodules\n", done.stderr.decode()
    finally:
        shutil.rmtree(checkout, ignore_errors=True)


def _is_new_enough(python: str) -> bool:
    test = "import sys; sys.exit(sys.version_info < (3, 11))"
    return os.path.exists(python) and subprocess.run([python, "-c", test], check=False).returncode == 0


def test_without_sudo_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(run_as, "DEFAULT_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunnerError, match="there is no sudo") as refused:
        run_as._sudo(NOBODY)
    assert refused.value.code == "run_as.refused"


def test_a_terminal_is_no_channel(host: Host) -> None:
    primary, secondary = os.openpty()
    other = "nobody" if os.geteuid() == 0 else "root"
    process = host.start("agent", "--run-as", other, stdin=secondary, stderr=subprocess.PIPE, start_new_session=True)
    _, stderr = process.communicate(timeout=PATIENCE)
    os.close(primary)
    os.close(secondary)
    assert (process.returncode, b"[usage.invalid]" in stderr) == (125, True)


# -- what the target says is not believed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"cronium-run-as: here\ncronium-run-as: runner /tmp/evil\n",
        b"cronium-run-as: here\ncronium-run-as: runner /dev/shm/cronium-runner-65534/1.0-abc/../x\n",
        b"cronium-run-as: here\ncronium-run-as: failed no room\n",
        b"cronium-run-as: here\n",
        b"cronium-run-as: here\nsh: tar: not found\n\xff\n",
        b"",
    ],
)
def test_only_a_path_that_can_be_is_taken(said: bytes) -> None:
    with pytest.raises(RunnerError) as refused:
        hand_over.answer(said, NOBODY, BUNDLE)
    assert refused.value.code == "run_as.no_runner"


def test_the_right_answers_are_understood() -> None:
    there = "/dev/shm/cronium-runner-65534/1.0-abc/cronium-runner"
    said = f"motd\ncronium-run-as: here\ncronium-run-as: runner {there}\n".encode()
    assert hand_over.answer(said, NOBODY, BUNDLE) == there
    assert hand_over.answer(b"cronium-run-as: here\ncronium-run-as: none\n", NOBODY, BUNDLE) is None
    assert hand_over.was_reached(said)
    assert not hand_over.was_reached(b"sudo: cronium-run-as: here, not at the start of a line")


@pytest.mark.parametrize(("has_memfd", "said"), [(True, "Operation not permitted"), (False, "Bad file descriptor")])
def test_the_archive_is_whole_and_cannot_be_written(
    has_memfd: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel, or a container's filter, has no files in memory."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if not has_memfd:
        monkeypatch.setattr(os, "memfd_create", refuse)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    packed = hand_over.archive(BUNDLE, lambda _: b"abc")
    with os.fdopen(packed.descriptor, "rb") as file, tarfile.open(fileobj=file) as found:
        assert {entry.name: (entry.mode, entry.linkname) for entry in found} == {
            "helpers/client": (0o700, ""),
            "contents": (0o600, ""),
            "helpers/bin/x": (0o777, "../client"),
        }
        with pytest.raises(OSError, match=said):
            os.pwrite(packed.descriptor, b"x", 0)
    assert os.listdir(tmp_path) == []


def test_a_damaged_runner_of_ours_is_not_handed_over() -> None:
    with pytest.raises(RunnerError, match="install the runner again"):
        hand_over.archive(BUNDLE, lambda _: b"ab")


def test_exchanged_libraries_are_given_to_no_other_account() -> None:
    """Their owner has exchanged them for their own runner only."""
    listed = f"{BUNDLE.text}f 0600 3 _internal/x.so\na 4 {'0' * 64} _internal/x.so\n"
    with pytest.raises(RunnerError, match=r"exchanged \(_internal/x.so\)") as refused:
        hand_over.archive(Bundle(listed), lambda _: b"abc")
    assert refused.value.code == "run_as.no_runner"


def test_roots_of_another_account_are_those_it_would_use_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRONIUM_INSTALL_DIR", raising=False)
    own = account.find(account.own_name())
    assert set(location.roots()) <= set(location.roots_of(own.uid, own.home))
    assert location.roots_of(7, "relative") == [
        root for root in location.roots_of(7, "/h") if not root.startswith("/h")
    ]


# -- payloads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "x" * 100, "x" * 101, "d/" * 80 + "deep", "äöü" * 40])
def test_tar_reads_what_is_written(name: str) -> None:
    content = ustar.file_header(name, 5, 0o755) + b"hello" + ustar.padding(5) + ustar.link("l", "t") + ustar.END
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        first, second = archive.getmembers()
        assert (first.name, first.size, first.mode, first.mtime, first.uid) == (name, 5, 0o755, 0, 0)
        assert (second.name, second.linkname, second.issym()) == ("l", "t", True)
        extracted = archive.extractfile(first)
        assert extracted is not None
        assert extracted.read() == b"hello"


def _packed(state: StateDirectory, source: Source) -> tuple[bytes, str]:
    with packing.packed(state, source, NOBODY) as (file, sha256, signature):
        assert signature is None
        return file.read(), sha256


def test_equal_folders_are_equal_payloads(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        (folder / "empty" / "nested").mkdir(parents=True)
        (folder / "manifest.yaml").write_text("version: v1\nentrypoint: main.sh\n")
        (folder / "sub" / "x").write_text("x")
        (folder / "main.sh").write_text("true")
        (folder / "output.json").write_text(f'"left by a run of {name}"')
    first, second = (_packed(state, Folder(str(tmp_path / name))) for name in ("one", "two"))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first[0]))) as archive:
        assert archive.getnames() == ["empty/nested", "main.sh", "manifest.yaml", "sub/x"]
        assert archive.getmember("empty/nested").isdir()
    assert os.listdir(state.executions) == [], "nothing is left"


def test_a_script_gets_a_manifest(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    script = tmp_path / 'it\'s: "odd" {äöü}.sh'
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    content, _ = _packed(state, Script(str(script), ("bash", "-l")))
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as archive:
        manifest = archive.extractfile("manifest.yaml")
        assert manifest is not None
        written = dict(line.split(b": ", 1) for line in manifest.read().splitlines())
        assert json.loads(written[b"entrypoint"]) == script.name
        assert json.loads(written[b"interpreter"]) == ["bash", "-l"]
        assert archive.getmember(script.name).mode == 0o755


def test_a_payload_file_goes_as_it_is(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    path = tmp_path / "p.tar.gz"
    path.write_bytes(b"\x1f\x8bbytes")
    assert _packed(state, Archive(str(path)))[0] == b"\x1f\x8bbytes"
    with pytest.raises(RunnerError) as refused:
        _packed(state, Archive(str(path), "0" * 64))
    assert refused.value.code == "payload.digest_mismatch"


@making_accounts
def test_what_is_in_the_targets_reach_is_known(tmp_path: Path, target: Account) -> None:
    them = account.find(target.name)
    ours = tmp_path / "ours"
    ours.write_text("")
    assert not packing.is_in_reach(str(ours), them)
    assert packing.is_in_reach(str(target.home / "x"), them)
    assert packing.is_in_reach(str(tmp_path / "missing"), them)
    link = target.home / "link"
    os.symlink(ours, link)
    assert packing.is_in_reach(str(link), them), "who owns the link's folder says where it leads"
    (tmp_path / "to").symlink_to(target.home)
    (target.home / "x").write_text("")
    assert packing.is_in_reach(str(tmp_path / "to" / "x"), them)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "x").write_text("")
    assert packing.is_in_reach(str(shared / "x"), them)
    shared.chmod(0o1777)
    assert not packing.is_in_reach(str(shared / "x"), them), "sticky: nobody else may replace it"
    shared.chmod(0o770)
    os.chown(shared, 0, target.gid)
    assert packing.is_in_reach(str(shared / "x"), them)


# -- frames and sentences ----------------------------------------------------------------------------------------------


def test_a_submission_survives_the_frame() -> None:
    given = Submission(
        execution_id="x",
        source=Archive("/cache/" + "a" * 64, "a" * 64, "signature"),
        has_input=True,
        input=None,
        variables={"v": [1]},
        secrets={"s": "t"},
        event={"name": "n"},
        args=("a", ""),
        timeout=1.5,
        job_id="j",
        on_disconnect="cancel",
        keep_work=True,
        masked_names=("*_X",),
        limits=Limits(nice=5),
        api=Access("unix:///x", "token"),
        script_endpoint="http://127.0.0.1:9",
    )
    assert set(given._fields) == {
        field for field in given._fields if getattr(given, field) != getattr(Submission("x", given.source), field, None)
    } | {"execution_id", "source", "input"}, "every field is tried with a value of its own"
    for submission in (given, Submission("x", given.source)):
        frame = json.loads(json.dumps(to_frame(submission, "a" * 64, "signature")))
        assert from_frame(frame, "/cache/{}".format) == submission


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("cronium-runner: no such thing [run_as.unknown_user]\n", ("run_as.unknown_user", "no such thing")),
        ("motd\ncronium-runner: a [b] c [state.unusable]\r\nbye", ("state.unusable", "a [b] c")),
        ("cronium-runner: warning: something\n", None),
        ("cronium-runner: what [no.such_code]", None),
        ("bash: cronium-runner: not found", None),
    ],
)
def test_a_runners_last_word_is_understood(printed: str, told: tuple[str, str] | None) -> None:
    assert codes.told(printed) == told


class Endless:
    """An agent of the target's that always has another page, in which every text moves the cursor."""

    def __init__(self, *_: object) -> None:
        self.asked = 0

    def __enter__(self) -> "Endless":
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, *_: object) -> None:
        self.asked += 1

    def expect(self, *_: object) -> frames.Frame:
        told = {"executions": [{"state": "\x1b[2J"}] * 1000, "after": "x" * self.asked}
        return frames.Frame(frames.Kind.STATUS, 1, json.dumps(told).encode())


def test_a_target_fills_no_memory_of_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_other, "_Agent", Endless)
    monkeypatch.setattr(as_other, "_MOST_TOLD", 1_000_000)
    target = account.Account("app", 4242, 4242, "/home/app", "/bin/sh")
    with pytest.raises(RunnerError, match="tells no statuses") as raised:
        as_other.statuses(target)
    assert raised.value.code == "channel.protocol"
    monkeypatch.setattr(
        Endless, "expect", lambda *_: frames.Frame(frames.Kind.STATUS, 1, b'{"executions": [{"s": "\\u001b"}]}')
    )
    assert as_other.statuses(target) == [{"s": "\\x1b"}], "nothing that a terminal obeys"
    report: dict[str, object] = {key: kind() for key, kind in REPORT.items()} | {"failed": {"x\x1b": "\x1b[2J"}}
    answer = json.dumps({"collection": report}).encode()
    monkeypatch.setattr(Endless, "expect", lambda *_: frames.Frame(frames.Kind.STATUS, 1, answer))
    assert as_other.collect(target, {})["failed"] == {r"x\x1b": r"\x1b[2J"}
