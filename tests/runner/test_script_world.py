"""What a script finds around it, whatever starts it: the helpers, its first line, its directory, its output."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from cronium_runner.wire.frames import Kind
from payload_bytes import make_payload
from runner_process import AgentProcess, Host, Payload

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
PYTHON = "import cronium; cronium.setVariable('V', 1)"
NODE = "require('cronium').setVariable('V', 1)"
PROFILE = "PATH=/usr/bin:/bin\nexport PYTHONPATH=/elsewhere NODE_PATH=/elsewhere\nin_profile() { echo profile; }\n"


@pytest.fixture(scope="module")
def agent(shared_host: Host) -> Iterator[AgentProcess]:
    """One agent for all tests, of an account whose profiles set everything anew."""
    for name in (".profile", ".bash_profile"):
        shared_host.script(PROFILE, name)
    shared_host.environment |= {"HOME": str(shared_host.folder)}
    shared_host.environment.pop("PYTHONUNBUFFERED", None)
    with shared_host.agent() as made:
        yield made
        assert made.close() == 0


class Ran:
    """An execution that has ended: its result and its streams."""

    def __init__(self, agent: AgentProcess, channel: int) -> None:
        self.result: dict[str, Any] = agent.finished(channel)
        self.stdout, self.stderr = agent.stdout(channel), agent.stderr(channel)

    @property
    def changed(self) -> dict[str, Any]:
        """The variables that it set, once it has succeeded."""
        assert self.result["state"] == "succeeded", (self.result, self.stdout, self.stderr)
        variables: dict[str, Any] = self.result["variables"]
        return variables


def run(agent: AgentProcess, name: str, script: str | bytes, *, manifest: str = "", **keys: Any) -> Ran:
    """Runs a payload of one script that has this name."""
    content = script if isinstance(script, bytes) else script.encode()
    described = f"version: v1\nentrypoint: {name}\n{manifest}".encode()
    payload = Payload(make_payload({"manifest.yaml": described, name: content}))
    number = agent.new_channel()
    return Ran(agent, agent.start(payload, f"job-{number}", **keys))


@pytest.mark.parametrize(
    ("name", "script", "state"),
    [
        ("x.sh", "#!/bin/bash -e\nfalse\necho after\n", "failed"),
        ("x.sh", "#!/bin/bash\nfalse\ntrue\n", "succeeded"),
        ("x.py", "#!/bin/sh\n[ -n \"$CRONIUM_WORK_DIR\" ]\n", "succeeded"),
        ("x.sh", "\ufeff#!/bin/bash -e\nshopt -q extglob || true\n", "succeeded"),
        ("x.sh", "\ufeffset -e\ntrue\n", "succeeded"),
        ("x", "\ufeff#!/usr/bin/env python3\nimport cronium\n", "succeeded"),
        ("x.py", "\ufeff# coding: latin-1\nprint('\u00e9')\n", "succeeded"),
        ("-x.sh", "#!/bin/bash -e\n[ \"$0\" = \"$CRONIUM_WORK_DIR/-x.sh\" ]\n", "succeeded"),
    ],
)  # fmt: skip
def test_first_lines(agent: AgentProcess, name: str, script: str, state: str) -> None:
    ran = run(agent, name, script)
    assert (ran.result["state"], ran.stderr) == (state, b""), ran.stdout
    assert b"after" not in ran.stdout


def test_an_interpreter_of_the_payload(agent: AgentProcess) -> None:
    described = b"version: v1\nentrypoint: dir/script\n"
    files = {"manifest.yaml": described, "bin/run": b'#!/bin/sh\necho "$@"\n', "dir/script": b"#!bin/run a b\n"}
    payload = Payload(make_payload(files, executable=("bin/run",)))
    ran = Ran(agent, agent.start(payload, "own-interpreter"))
    assert ran.stdout.startswith(b"a b /")  # the kernel makes one word of them
    assert ran.stdout.endswith(b"/work/dir/script\n")


@pytest.mark.parametrize(
    ("name", "script", "manifest"),
    [
        ("x.sh", f'python3 -c "{PYTHON}"', ""),
        ("x.sh", f'python3 -u -c "{PYTHON}"', "interpreter: [bash, -l]"),
        ("x", PYTHON, "interpreter: [env, python3]"),
        ("x", PYTHON, "interpreter: [nice, python3]"),
        ("x", PYTHON, 'interpreter: [timeout, "30", python3]'),
        ("x.py", f"import subprocess\nsubprocess.run(['bash', '-c', '''python3 -c \"{PYTHON}\"'''], check=True)", ""),
        pytest.param("x.sh", f'node -e "{NODE}"', "", marks=needs_node),
        pytest.param("x.sh", f'node -e "{NODE}"', "interpreter: [bash, -l]", marks=needs_node),
        pytest.param("x", NODE, "interpreter: [env, node]", marks=needs_node),
        pytest.param(
            "x.py", f'import subprocess\nsubprocess.run(["node", "-e", "{NODE}"], check=True)', "", marks=needs_node
        ),
        pytest.param(
            "x.js", f"""require("child_process").execFileSync("python3", ["-c", "{PYTHON}"])""", "", marks=needs_node
        ),
    ],
)
def test_both_languages_find_the_helpers(agent: AgentProcess, name: str, script: str, manifest: str) -> None:
    assert run(agent, name, script, manifest=manifest).changed == {"V": 1}


@pytest.mark.parametrize(
    ("name", "script", "manifest"),
    [
        ("x", "cronium.setVariable('V', 1)", "interpreter: [env, python3]"),
        ("x", "cronium.setVariable('V', 1)", 'interpreter: [timeout, "30", python3]'),
        pytest.param("x", "cronium.setVariable('V', 1)", "interpreter: [env, node]", marks=needs_node),
    ],
)
def test_it_is_there_without_an_import(agent: AgentProcess, name: str, script: str, manifest: str) -> None:
    assert run(agent, name, script, manifest=manifest).changed == {"V": 1}


def test_but_not_in_programs_of_other_scripts(agent: AgentProcess) -> None:
    script = 'python3 -c \'import builtins, sys; sys.exit(hasattr(builtins, "cronium"))\'\n[ -z "$NODE_OPTIONS" ]\n'
    assert run(agent, "x.sh", "set -e\n" + script).changed == {}


@pytest.mark.parametrize(
    ("first", "manifest"),
    [
        ("#!/bin/bash -l", ""),
        ("#!/bin/sh -l", ""),
        ("#!/usr/bin/env -S bash -e -l", ""),
        ("", "interpreter: [bash, -l]"),
        ("", "interpreter: [env, A=1, bash, --login]"),
    ],
)
def test_a_login_shell_keeps_the_helpers(agent: AgentProcess, first: str, manifest: str) -> None:
    script = f'{first}\ncronium.setVariable V "$(in_profile) $0 $*"\necho "$PATH"\n'
    ran = run(agent, "x.sh", script, manifest=manifest, args=["a", "b c"])
    work = ran.changed["V"].split()[1]
    assert ran.changed == {"V": f"profile {work} a b c"}
    assert work.endswith("/work/x.sh")
    assert ran.stdout.endswith(b"/bin:/usr/bin:/bin\n")
    assert ran.stderr == b""


def test_python_is_live_and_keeps_its_output_when_it_is_ended(agent: AgentProcess, shared_host: Host) -> None:
    described = "import time\nprint('seen')\ntime.sleep(3600)\n"
    payload = shared_host.payload(described, interpreter="python")
    channel = agent.start(payload, "live")
    shared_host.wait_running("live", b"seen\n")
    agent.send(Kind.CANCEL, channel)
    assert agent.finished(channel)["state"] == "cancelled"
    assert agent.stdout(channel) == b"seen\n"


@pytest.mark.parametrize(
    "emptied",
    [
        "rm -rf ./* .[!.]*",
        "rm -rf .cronium",
        'rm -rf "$CRONIUM_WORK_DIR"',
        'cd /; rm -rf "$CRONIUM_WORK_DIR"; mkdir "$CRONIUM_WORK_DIR"',
    ],
)
def test_helpers_write_after_the_directory_was_emptied(agent: AgentProcess, emptied: str) -> None:
    script = f"""set -e
cronium.setVariable BEFORE 1
cronium.output k 1
{emptied}
cronium.setVariable AFTER 2
cronium.output l 2
cd "$CRONIUM_WORK_DIR" 2>/dev/null || exit 0
cat .cronium/variables.json .cronium/output.json .cronium/input.json
"""
    ran = run(agent, "x.sh", script, input="in")
    assert ran.changed == {"BEFORE": "1", "AFTER": "2"}
    assert ran.result["output"] == {"k": "1", "l": "2"}
    if os.path.basename(emptied.split()[-1].strip('"')) != "$CRONIUM_WORK_DIR" or "mkdir" in emptied:
        assert ran.stdout == b'{"BEFORE":"1","AFTER":"2"}{"data":{"k":"1","l":"2"}}{"data":"in"}'


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        ("x.py", "cronium.setVariable('V', 'x' * (17 << 20))", b"larger than 16 MiB"),
        ("x.py", "cronium.output('x' * (7 << 20))", b"larger than 6 MiB"),
        ("x.sh", "head -c 9000000 /dev/zero | tr '\\0' x | cronium.output", b"larger than 8 MiB"),
        ("x.sh", "head -c 70000000 /dev/zero | tr '\\0' x | cronium.setVariable V", b"larger than 8 MiB"),
        ("x.sh", "seq 5000 | xargs -n 5000 cronium.output", b"4096 words at most"),
        pytest.param("x.js", "cronium.output('x'.repeat(17 << 20))", b"larger than 16 MiB", marks=needs_node),
    ],
)
def test_values_that_are_too_large(agent: AgentProcess, name: str, script: str, said: bytes) -> None:
    ran = run(agent, name, script + ("\nexit $?" if name == "x.sh" else ""))
    assert ran.result["state"] == "failed"
    assert said in ran.stderr
    assert b"gone" not in ran.stderr


@pytest.mark.parametrize(
    ("keys", "manifest", "said"),
    [
        ({"args": ["x", "y" * 140_000]}, "", "argument 3 of the script's command has 140000 bytes"),
        ({}, f"environment: {{BIG: {'z' * 140_000}}}", "environment variable BIG has 140004 bytes"),
        ({"args": ["", *["x" * 100_000] * 100]}, "", "more than this host takes for all together"),
        ({"args": ["x" * 100_000] * 100, "limits": {"nice": 1}}, "", "argument 2 of the script's command, has 100000"),
    ],
)
def test_arguments_and_environment_that_are_too_large(
    agent: AgentProcess, shared_host: Host, keys: dict[str, Any], manifest: str, said: str
) -> None:
    described = f"version: v1\nentrypoint: x.sh\n{manifest}\n# {said}".encode()  # a payload that isn't cached yet
    payload = Payload(make_payload({"manifest.yaml": described, "x.sh": b"echo never"}))
    number = agent.new_channel()
    channel = agent.submit(payload, f"large-{number}", **keys)
    agent.expect(channel, Kind.WANT_PAYLOAD)
    agent.send_payload(channel, payload.content)
    refused = agent.finished(channel)
    assert (refused["state"], refused["error"]["code"]) == ("rejected", "execution.too_large")
    assert said in refused["error"]["message"]
    assert not shared_host.execution(f"large-{number}").exists()
