"""`--run-as`: everything of an execution is the target's, nothing of the caller's reaches it, and no way leads back."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from accounts import Account, sudo_rule, throw_away_account
from cronium_runner.wire.frames import MAGIC, FrameReader, Kind, encode, encode_data, encode_json
from runner_process import PATIENCE, Host, command_line, wait_until

pytestmark = [
    pytest.mark.frozen,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make accounts"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd"),
]
with_sudo = pytest.mark.skipif(shutil.which("sudo") is None, reason="needs sudo: apt-get install sudo")

ROOT = Path(__file__).resolve().parents[2]


def has_begun(target: Account, execution_id: str) -> bool:
    """Whether the script's `on` is there."""
    try:
        return (target.execution(execution_id) / "stdout").read_bytes() == b"on\n"
    except FileNotFoundError:
        return False


def _octal(frame: bytes) -> str:
    """A frame as the shell's printf takes it."""
    return "".join(f"\\{byte:03o}" for byte in frame)


HELLO = _octal(encode_json(Kind.HELLO, 0, {"protocol": [1, 1]}))
WRONG_RESULT = _octal(encode_json(Kind.FINISHED, 1, {"executionId": "another", "state": "succeeded"}))
NO_OUTPUT = _octal(encode_data(1, 7, 0, b"x"))


@pytest.fixture(scope="module")
def target() -> Iterator[Account]:
    with throw_away_account("--groups", "users") as account:
        yield account


@pytest.fixture(scope="module")
def caller(binary: Path) -> Iterator[Account]:
    """An ordinary account that has the binary."""
    with throw_away_account() as account:
        account.give(account.home / "cronium-runner", binary.read_bytes(), 0o755)
        yield account


@pytest.fixture
def root(tmp_path: Path, install_directory: Path, binary: Path) -> Iterator[Host]:
    """Root's own runner, with directories of root's that the target can't enter."""
    made = Host(tmp_path, install_directory)
    made.executable = (str(binary),)
    made.run("version")
    [made_of] = install_directory.glob("*/contents")  # the installed form: the one-file binary has a parent of its own
    made.executable = (str(made_of.with_name("cronium-runner")),)
    yield made
    made.check_nothing_left()


def ordinary(caller: Account, folder: Path) -> Host:
    """The caller's runner, in the caller's own directories."""
    made = Host(folder, folder / "unused")
    made.executable = (str(caller.home / "cronium-runner"),)
    made.environment = {"PATH": os.environ["PATH"], "HOME": str(caller.home), "LEAK": "the caller's own"}
    made.user = {**caller.popen, "cwd": caller.home}
    return made


def printed(done: "subprocess.CompletedProcess[bytes]") -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# -- whose everything is -----------------------------------------------------------------------------------------------


def test_it_runs_as_the_target_in_the_targets_directories(root: Host, target: Account) -> None:
    script = root.script("id -u; id -g; id -G; pwd; echo oops >&2; exit 7")
    done = root.run("run", "--run-as", target.name, "--execution-id", "mine", script)
    uid, gid, groups, work = done.stdout.decode().split("\n")[:4]
    assert (done.returncode, done.stderr) == (7, b"oops\n")
    assert (int(uid), int(gid)) == (target.uid, target.gid)
    assert set(map(int, groups.split())) == set(os.getgrouplist(target.name, target.gid))
    assert work == str(target.execution("mine") / "work")
    assert target.execution("mine").stat().st_uid == target.uid
    assert not root.executions(), "root's own state has nothing of it"
    result = json.loads((target.execution("mine") / "result.json").read_bytes())
    assert result["exitCode"] == 7
    target.wait_nothing_left()


def test_memory_of_the_runner_is_closed_to_its_scripts(root: Host, target: Account) -> None:
    """Agent and supervisor hold secrets: the target's other processes read none of their memory; no core file."""
    script = root.script(
        "agent=$(ps -o ppid= $PPID | tr -d ' ')\n"
        "for pid in $PPID $agent; do\n"
        "  cat /proc/$pid/environ /proc/$pid/maps && echo READ\n"
        "  grep -h ^Uid: /proc/$pid/status; stat -c %u /proc/$pid/environ; grep -h '^Max core' /proc/$pid/limits\n"
        "done 2>/dev/null\n"
        "cat /proc/self/environ >/dev/null && echo own\n"
    )
    lines = printed(root.run("run", "--run-as", target.name, script)).splitlines()
    assert "READ" not in lines
    assert lines[-1] == "own"
    for user, shown, limit in (lines[0:3], lines[3:6]):
        assert (user.split()[1], shown, limit.split()[4]) == (str(target.uid), "0", "0")
    target.wait_nothing_left()


def test_targets_folder_that_others_rule_holds_no_runner(root: Host, binary: Path) -> None:
    """Another user's `lib` in the target's home, opened to the target: its next fallback is taken."""
    with throw_away_account() as target:
        for path, owner in ((target.home / ".local", target.uid), (target.home / ".local/lib", 4343)):
            path.mkdir()
            path.chmod(0o777)
            os.chown(path, owner, owner)
        script = root.script("tr '\\0' '\\n' </proc/$PPID/cmdline | head -1")
        runner = printed(root.run("run", "--run-as", target.name, script)).strip()
        assert runner.startswith(f"{target.home}/.cache/cronium-runner/")
        assert os.listdir(target.home / ".local/lib") == []
        assert (target.home / ".local").stat().st_mode & 0o777 == 0o755
        target.wait_nothing_left()


def test_the_environment_is_a_logins_and_nothing_of_roots(root: Host, target: Account) -> None:
    done = root.run(
        "run", "--run-as", target.name, root.script("env -0"), env={"AWS_SECRET": "roots-own", "LC_ALL": "C"}
    )
    names = dict(line.split("=", 1) for line in printed(done).split("\0") if line)
    documented = {name for name in names if name.startswith("CRONIUM_")}
    documented |= {"PYTHONPATH", "NODE_PATH", "PYTHONUNBUFFERED"}
    assert set(names) - documented - {"_", "PWD", "SHLVL", "OLDPWD"} == {"HOME", "USER", "LOGNAME", "SHELL", "PATH"}
    assert (names["HOME"], names["USER"], names["LOGNAME"]) == (str(target.home), target.name, target.name)
    assert "roots-own" not in printed(done)


def test_no_descriptor_of_roots_reaches_the_script(root: Host, target: Account, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("for root only")
    script = root.script("for n in /proc/self/fd/* /proc/$PPID/fd/*; do readlink $n; done; true")
    with secret.open("r+") as file:
        done = root.run("run", "--run-as", target.name, script, pass_fds=(file.fileno(),))
    assert "secret" not in printed(done)
    kinds = {line.split(":")[0] for line in printed(done).splitlines()}
    assert not {
        kind
        for kind in kinds
        if kind.startswith("/") and not kind.startswith(("/dev/null", "/proc/", str(target.home)))
    }


def test_no_descriptor_of_roots_reaches_the_agent(root: Host, target: Account, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("for root only")
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with secret.open("r+") as file:
        process = root.start("agent", "--run-as", target.name, pass_fds=(file.fileno(),), bufsize=0, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == MAGIC
    # Its own file of modules is open until it has loaded what jobs need; then it answers.
    process.stdin.write(encode(Kind.PING, 0, b""))
    reader, kinds = FrameReader(), set[int]()
    while Kind.PONG not in kinds:
        piece = os.read(process.stdout.fileno(), 1 << 16)
        assert piece, "the agent has ended"
        kinds |= {frame.kind for frame in reader.feed(piece)}
    held = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert os.stat(f"/proc/{process.pid}").st_uid == target.uid, "the very process that root started"
    assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert str(secret) not in held
    assert {name.split(":")[0] for name in held} <= {"pipe", "/dev/null", "socket"}


def test_it_has_no_capability_and_no_way_back(root: Host, target: Account) -> None:
    script = root.script("grep -E '^(Cap(Prm|Eff|Amb)|Uid|Gid)' /proc/self/status /proc/$PPID/status")
    for line in printed(root.run("run", "--run-as", target.name, script)).splitlines():
        name, *values = line.partition(":")[2].split()
        wanted = {"Uid:": target.uid, "Gid:": target.gid}.get(name, 0)
        assert {int(value, 16 if name.startswith("Cap") else 10) for value in values} == {wanted}, line


def test_it_can_neither_signal_nor_look_into_a_process_of_roots(root: Host, target: Account) -> None:
    script = root.script(
        "client=$(cronium.getVariable CLIENT)\n"
        "for pid in $client $(cat /proc/$client/task/$client/children) 1; do\n"
        '  [ "$(stat -c %u /proc/$pid)" = 0 ] || continue\n'
        "  echo tried; kill -9 $pid && echo KILLED; cat /proc/$pid/environ /proc/$pid/maps && echo READ\n"
        "  ls /proc/$pid/fd && echo LISTED; done 2>/dev/null"
    )
    process = root.start(
        "run", "--run-as", target.name, "--var", f"CLIENT={os.getpid()}", script, stdout=subprocess.PIPE
    )
    stdout, _ = process.communicate(timeout=60)
    assert set(stdout.decode().split()) == {"tried"}


def test_between_root_and_the_target_stays_only_the_client(root: Host, target: Account) -> None:
    """The agent that root started has become the target's: root keeps no process but the one that was called."""
    process = root.start("run", "--run-as", target.name, "--execution-id", "between", root.script("echo on; sleep 60"))
    wait_until(lambda: has_begun(target, "between"), "the script to run")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert [os.stat(f"/proc/{pid}").st_uid for pid in children] == [target.uid]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
    target.wait_nothing_left()


def test_the_terminal_of_the_caller_is_out_of_reach(root: Host, target: Account) -> None:
    script = root.script(
        "(: </dev/tty) && echo REACHED; ls -l /proc/*/fd 2>/dev/null | grep -c 'pts/'\n"
        "ps -o tty= -p $$ -p $PPID -p $(ps -o ppid= -p $PPID)"
    )
    primary, secondary = os.openpty()

    def own_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(secondary, termios.TIOCSCTTY, 0)

    how: dict[str, Any] = {"stdin": secondary, "stdout": secondary, "stderr": secondary, "preexec_fn": own_terminal}
    process = root.start("run", "--run-as", target.name, script, **how)
    os.close(secondary)
    shown = b""
    try:
        while piece := os.read(primary, 65536):
            shown += piece
    except OSError:
        pass  # the terminal's other side is closed
    os.close(primary)
    process.wait(PATIENCE)
    assert b"REACHED" not in shown
    lines = [line.strip() for line in shown.decode().splitlines() if "/dev/tty" not in line]
    assert lines == ["0", "?", "?", "?"], shown  # the script, its supervisor, the agent


# -- what comes from the caller ----------------------------------------------------------------------------------------


def test_a_folder_that_the_target_cannot_read_is_handed_over(root: Host, target: Account) -> None:
    folder = root.folder / "job"
    (folder / "sub").mkdir(parents=True, mode=0o700)
    (folder / "manifest.yaml").write_text("version: v1\nentrypoint: main.sh\n")
    (folder / "main.sh").write_text('cat sub/"a long name, äöü"; ./tool\n')
    (folder / "sub" / "a long name, äöü").write_text("handed over\n")
    (folder / "tool").write_text("#!/bin/sh\necho executable\n")
    (folder / "tool").chmod(0o700)
    (folder / ("x" * 120)).write_text("a name that is too long for a header")
    folder.chmod(0o700)
    done = root.run("run", "--run-as", target.name, "--execution-id", "folder", folder)
    assert printed(done) == "handed over\nexecutable\n"
    assert sorted(os.listdir(folder)) == sorted(["main.sh", "manifest.yaml", "sub", "tool", "x" * 120])
    again = root.run("run", "--run-as", target.name, "--execution-id", "folder", folder)
    assert again.stdout == done.stdout, "the same folder is the same payload: attached"
    (folder / "tool").write_text("#!/bin/sh\necho changed\n")
    refused = root.run("run", "--json", "--run-as", target.name, "--execution-id", "folder", folder)
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (125, "execution.id_conflict")


def test_what_the_target_may_swap_is_read_with_the_targets_rights(root: Host, target: Account, tmp_path: Path) -> None:
    secret = tmp_path / "secret.sh"
    secret.write_text("echo for root only")
    secret.chmod(0o600)
    link = target.home / "job.sh"
    os.symlink(secret, link)
    os.lchown(link, target.uid, target.gid)
    refused = root.run("run", "--json", "--run-as", target.name, link)
    assert (refused.returncode, json.loads(refused.stdout)["state"]) == (125, "rejected")
    assert json.loads(refused.stdout)["error"]["code"] in ("payload.unreadable", "payload.not_found")
    link.unlink()
    own = target.give(target.home / "own.sh", "echo my own")
    assert printed(root.run("run", "--run-as", target.name, own)) == "my own\n"


def test_nothing_of_roots_is_written_where_the_target_rules(root: Host, target: Account, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    folder = target.home / "job"
    folder.mkdir()
    target.give(folder / "manifest.yaml", "version: v1\nentrypoint: main.sh\n")
    target.give(folder / "main.sh", "cronium.output k v")
    os.symlink(precious, folder / "output.json")
    os.chown(folder, target.uid, target.gid)
    done = root.run("run", "--run-as", target.name, folder)
    assert precious.read_text() == "kept"
    assert done.returncode == 125, "a link is no part of a payload"
    (folder / "output.json").unlink()
    result = json.loads(root.run("run", "--json", "--run-as", target.name, folder).stdout)
    assert result["output"] == {"k": "v"}
    assert not (folder / "output.json").exists()


def test_options_input_values_and_secrets_arrive_and_no_secret_is_in_an_argument(root: Host, target: Account) -> None:
    secret = f"geheim-{os.urandom(6).hex()}"
    script = root.script(
        'echo "$1 $(cronium.input a) $(cronium.getVariable V) $(cronium.event name)"; s=$(cronium.getVariable S); '
        'echo "${#s} $s"; sleep 1; cronium.output got "$(cronium.input b)"; cronium.setVariable W w'
    )
    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for name in os.listdir("/proc"):
                for what in ("cmdline", "environ"):
                    try:
                        content = Path(f"/proc/{name}/{what}").read_bytes()
                    except OSError:
                        continue
                    if secret.encode() in content:
                        seen.append(f"{what} of {content[:200]!r}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    words: list[object] = ["--input", '{"a": "in", "b": [1.50]}', "--var", "V=v", "--event", '{"name": "nightly"}']
    words += ["--secret", "S=@-", "--keep", "--execution-id", "options"]
    done = root.run("run", "--json", "--run-as", target.name, *words, script, "--", "an arg", input=secret.encode())
    stop.set()
    watcher.join()
    assert not seen
    result = json.loads(done.stdout)
    assert result["stdout"]["text"] == f"an arg in v nightly\n{len(secret)} ***\n"
    assert (result["output"], result["variables"]) == ({"got": "[1.50]"}, {"W": "w"})
    assert (target.execution("options") / "work").is_dir(), "--keep"


def test_streams_of_any_size_arrive_byte_for_byte(root: Host, target: Account) -> None:
    script = root.script("head -c 9000000 /dev/urandom | tee >(sha256sum >&2)")
    done = root.run("run", "--run-as", target.name, script)
    assert hashlib.sha256(done.stdout).hexdigest().encode() == done.stderr.split()[0]


def test_a_slow_reader_of_the_client_does_not_end_it(root: Host, target: Account) -> None:
    process = root.start("run", "--run-as", target.name, root.script("yes | head -c 6000000"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    time.sleep(1)  # longer than it takes to fill every buffer on the way
    content = process.stdout.read()
    process.stdout.close()
    assert (len(content), process.wait(PATIENCE)) == (6000000, 0)


# -- promises ----------------------------------------------------------------------------------------------------------


def test_an_id_starts_once_however_often_it_is_submitted(root: Host, target: Account) -> None:
    starts = target.give(target.home / "starts", "")
    script = root.script(f"echo started >>{starts}; sleep 1; echo done")
    with ThreadPoolExecutor() as pool:
        done = list(
            pool.map(lambda _: root.run("run", "--run-as", target.name, "--execution-id", "once", script), range(6))
        )
    assert [(one.returncode, one.stdout) for one in done] == [(0, b"done\n")] * 6
    assert starts.read_text() == "started\n"


def test_nothing_is_left_when_the_end_is_reported(root: Host, target: Account) -> None:
    script = root.script(
        "for n in 1 2 3; do setsid bash -c 'trap \"\" TERM; (setsid sleep 300 &) ; sleep 300' & done; sleep 0.5; exit 4"
    )
    result = json.loads(root.run("run", "--json", "--run-as", target.name, script).stdout)
    assert (result["exitCode"], result["strays"] > 0) == (4, True)
    assert not [pid for pid in target.processes() if b"300" in command_line(pid)]
    target.wait_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_client_cancels(root: Host, target: Account, number: signal.Signals) -> None:
    execution_id = f"signal-{number}"
    process = root.start(
        "run", "--run-as", target.name, "--execution-id", execution_id, root.script("echo on; sleep 99")
    )
    wait_until(lambda: has_begun(target, execution_id), "the script to run")
    process.send_signal(number)
    assert process.wait(PATIENCE) == 130
    target.wait_nothing_left()


@pytest.mark.parametrize(("what", "state"), [("continue", "succeeded"), ("cancel", "cancelled")])
def test_a_client_that_is_killed_follows_on_disconnect(root: Host, target: Account, what: str, state: str) -> None:
    words = ["--execution-id", what, "--on-disconnect", what]
    script = root.script(f"echo on; sleep {3 if what == 'continue' else 99}; echo off")
    process = root.start("run", "--run-as", target.name, *words, script, stdout=subprocess.DEVNULL)
    wait_until(lambda: has_begun(target, what), "the script to run")
    process.kill()
    process.wait()
    done = root.run("attach", "--run-as", target.name, "--json", what)
    assert json.loads(done.stdout)["state"] == state
    assert json.loads(done.stdout)["stdout"]["text"] == ("on\noff\n" if state == "succeeded" else "on\n")


def test_the_targets_executions_are_looked_at_and_ended_from_here(root: Host, target: Account) -> None:
    process = root.start("run", "--run-as", target.name, "--execution-id", "looked", root.script("echo on; sleep 99"))
    wait_until(lambda: has_begun(target, "looked"), "the script to run")
    status = json.loads(root.run("status", "--run-as", target.name, "--json", "looked").stdout)
    assert (status["executionId"], status["state"], status["stdout"]["bytes"]) == ("looked", "running", 3)
    assert "looked" in printed(root.run("list", "--run-as", target.name))
    assert root.run("cancel", "--run-as", target.name, "looked").returncode == 0
    assert process.wait(PATIENCE) == 130
    again = root.run("cancel", "--run-as", target.name, "looked")
    assert (again.returncode, b"has ended already" in again.stderr) == (0, True)
    missing = root.run("status", "--run-as", target.name, "nonesuch")
    assert (missing.returncode, b"[execution.not_found]" in missing.stderr) == (125, True)


# -- how the runner gets there -----------------------------------------------------------------------------------------


def test_the_targets_records_are_waited_for_and_collected_from_here(root: Host, target: Account) -> None:
    run = ["run", "--run-as", target.name, "--execution-id", "kept-a-while", root.script("echo x; exit 4")]
    assert root.run(*run).returncode == 4
    waited = root.run("wait", "--run-as", target.name, "kept-a-while")
    assert (waited.returncode, waited.stdout.split()[:2]) == (4, [b"kept-a-while", b"failed"])
    gc = ["gc", "--run-as", target.name, "--older-than", "0"]
    assert "kept-a-while" in json.loads(root.run(*gc, "--dry-run", "--json").stdout)["collected"]
    assert "collected kept-a-while" in printed(root.run(*gc))
    assert "kept-a-while" not in printed(root.run("list", "--run-as", target.name))
    assert "kept-a-while" in printed(root.run("list", "--all", "--run-as", target.name))
    again = root.run(*run)
    assert (again.returncode, b"[execution.collected]" in again.stderr) == (4, True)


def test_the_runner_is_installed_once_and_privately(root: Host, target: Account) -> None:
    script = root.script("true")
    assert root.run("run", "--run-as", target.name, script).returncode == 0
    [installed] = target.installed.iterdir()
    before = (installed / "cronium-runner").stat()
    assert (before.st_uid, before.st_mode & 0o777, installed.stat().st_mode & 0o777) == (target.uid, 0o700, 0o700)
    assert root.run("run", "--run-as", target.name, script).returncode == 0
    assert (installed / "cronium-runner").stat().st_ino == before.st_ino
    (installed / "_internal" / "base_library.zip").unlink()
    assert root.run("run", "--run-as", target.name, script).returncode == 0, "a damaged one is replaced"
    assert [path.name for path in target.installed.iterdir()] == [installed.name], "nothing half-made is left"


@pytest.mark.parametrize(
    ("does", "status", "code"),
    [
        ("head -c 3000000 /dev/zero", 125, "channel.protocol"),
        ("printf 'cronium-agent\\n\\377\\377\\377\\377\\001AAAA'", 125, "runner.refused"),
        ("printf '\\036cronium-agent\\n\\377\\377\\377\\377\\001AAAA'; cat", 255, "channel.lost"),
        (f"printf '\\036cronium-agent\\n'; printf '{HELLO}{WRONG_RESULT}'; cat", 255, "channel.lost"),
        (f"printf '\\036cronium-agent\\n'; printf '{HELLO}{NO_OUTPUT}'; cat", 255, "channel.lost"),
        (f"printf '\\036cronium-agent\\n'; printf '{HELLO}'; exit 0", 255, "channel.lost"),
        ("echo 'cronium-runner: x [nonesuch]' >&2; exit 3", 125, "runner.refused"),
        ("kill -9 $PPID; kill -9 $$", 125, "runner.refused"),
    ],
)
def test_a_hostile_runner_of_the_targets_is_not_believed(root: Host, does: str, status: int, code: str) -> None:
    """The target may put what it likes in its runner's place: it gets no further than a sentence."""
    with throw_away_account() as hostile:
        folder = hostile.installed / Path(root.executable[0]).parent.name
        folder.mkdir(parents=True)
        hostile.give(folder / "cronium-runner", f'#!/bin/bash\n[ "$1" = version ] && exit 0\n{does}\n', 0o700)
        for path in (folder, hostile.installed):
            path.chmod(0o700)
            os.chown(path, hostile.uid, hostile.gid)
        done = root.run("run", "--json", "--run-as", hostile.name, root.script("true"))
        result = json.loads(done.stdout)
        assert (done.returncode, result["error"]["code"]) == (status, code), result["error"]
        assert b"Traceback" not in done.stderr


def test_a_directory_that_somebody_else_prepared_is_not_used(root: Host, caller: Account, binary: Path) -> None:
    """Without a home the runner goes to /var/tmp, where anybody can be first: with a runner that is none."""
    with throw_away_account() as homeless, ExitStack() as cleanup:
        shutil.rmtree(homeless.home)
        trap = Path(f"/tmp/trapped-{homeless.name}")
        cleanup.callback(trap.unlink, missing_ok=True)
        [folder] = [
            path.name
            for path in Path(root.environment["CRONIUM_INSTALL_DIR"]).iterdir()
            if (path / "contents").exists()
        ]
        prepared = Path(f"/var/tmp/cronium-runner-{homeless.uid}")
        (prepared / folder).mkdir(parents=True)
        caller.give(prepared / folder / "cronium-runner", f"#!/bin/sh\ntouch {trap}\n", 0o755)
        for path in (prepared, prepared / folder):
            os.chown(path, caller.uid, caller.gid)
            path.chmod(0o755)
        done = root.run("run", "--json", "--run-as", homeless.name, root.script("true"))
        assert not trap.exists()
        told = json.loads(done.stdout)["error"]
        assert (done.returncode, told["code"]) == (125, "state.unusable"), told
        assert str(homeless.home) in told["message"]
        shutil.rmtree(prepared)


def test_many_first_uses_at_once_end_with_one_installation(root: Host) -> None:
    with throw_away_account() as fresh:
        script = root.script("id -un")
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda _: root.run("run", "--run-as", fresh.name, script), range(4)))
        assert [printed(one) for one in done] == [f"{fresh.name}\n"] * 4
        assert len(list(fresh.installed.iterdir())) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nonesuch-account", "-u", "#0", "root\0", "", "../root"])
def test_an_account_that_does_not_exist_is_refused_before_anything(root: Host, name: str) -> None:
    if "\0" in name:
        name = "root\n"
    result = root.run_json("--run-as", name, "/nonexistent/script.sh")
    assert (result["exit status"], result["state"]) == (125, "rejected")
    assert result["error"]["code"] == "run_as.unknown_user"


def test_ones_own_account_is_no_other(root: Host) -> None:
    done = root.run("run", "--run-as", "root", "--execution-id", "own", root.script("id -u"))
    assert printed(done) == "0\n"
    assert root.executions() == ["own"]


# -- through sudo ------------------------------------------------------------------------------------------------------


@with_sudo
@pytest.mark.parametrize("pty", ["use_pty", "!use_pty"])
def test_an_ordinary_account_that_sudo_allows(caller: Account, target: Account, pty: str) -> None:
    script = caller.give(caller.home / "script.sh", "id -u; id -G; env; head -c 3000000 /dev/zero >&2; exit 9", 0o600)
    here = ordinary(caller, caller.home)
    with sudo_rule(f"Defaults:{caller.name} {pty}", f"{caller.name} ALL=({target.name}) NOPASSWD: ALL"):
        done = here.run("run", "--run-as", target.name, script)
        status = here.run("list", "--run-as", target.name)
    assert done.returncode == 9, done.stderr[:500]
    uid, groups, *environment = done.stdout.decode().splitlines()
    assert (int(uid), set(map(int, groups.split()))) == (target.uid, set(os.getgrouplist(target.name, target.gid)))
    assert not [line for line in environment if line.startswith(("LEAK=", "SUDO_"))]
    assert done.stderr == bytes(3000000)
    assert status.returncode == 0
    assert not (caller.home / ".local/state/cronium-runner/executions").exists() or not os.listdir(
        caller.home / ".local/state/cronium-runner/executions"
    )
    target.wait_nothing_left()


@with_sudo
def test_sudo_that_refuses_is_quoted_with_what_would_allow_it(caller: Account, target: Account) -> None:
    script = caller.give(caller.home / "script.sh", "true")
    here = ordinary(caller, caller.home)
    result: dict[str, Any] = json.loads(here.run("run", "--json", "--run-as", target.name, script).stdout)
    assert (result["state"], result["error"]["code"]) == ("rejected", "run_as.refused")
    assert "a password is required" in result["error"]["message"]
    assert f"{caller.name} ALL=({target.name}) NOPASSWD: ALL" in result["error"]["message"]
    with sudo_rule(f"{caller.name} ALL=({target.name}) NOPASSWD: /bin/true"):
        done = here.run("run", "--run-as", target.name, script)
    assert (done.returncode, b"[run_as.refused]" in done.stderr) == (125, True)
    assert not caller.processes()


@with_sudo
def test_a_signal_reaches_the_script_behind_sudo(caller: Account, target: Account) -> None:
    script = caller.give(caller.home / "script.sh", "trap '' HUP; echo on; sleep 99")
    here = ordinary(caller, caller.home)
    with sudo_rule(f"{caller.name} ALL=({target.name}) NOPASSWD: ALL"):
        process = here.start("run", "--run-as", target.name, "--execution-id", "behind", script)
        wait_until(lambda: has_begun(target, "behind"), "the script to run")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        target.wait_nothing_left()
        wait_until(lambda: not caller.processes(), "sudo to end")
