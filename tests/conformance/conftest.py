"""How the conformance suite starts the runner, and the clients it runs every case with.

Every case runs in both modes: bundled, and in API mode on a real platform that knows what is handed over.
`CRONIUM_TEST_RUNNER` chooses another runner (a frozen binary, an installed one); the default is this checkout's.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import live_platform
import preloaded
from cronium_runner.wire import exactjson
from helper_clients import Client, Run, compiled_client
from live_platform import LivePlatform


@pytest.fixture(scope="session")
def runner_command() -> list[str]:
    """The words that start the runner; none for this checkout's."""
    return shlex.split(os.environ.get("CRONIUM_TEST_RUNNER", ""))


@pytest.fixture(params=["c", "fallback", "python", "node"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Client:
    if request.param == "c":
        return Client("c", "sh", {"CRONIUM_HELPER_CLIENT": str(compiled_client(tmp_path_factory))})
    if request.param == "node" and not shutil.which("node"):
        pytest.skip("no node on this machine")
    return Client(request.param, {"python": "py", "node": "js"}.get(request.param, "sh"), {})


@pytest.fixture(params=["c", "fallback"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """The clients that are programs: for what only a shell script can say."""
    if request.param == "c":
        return Client("c", "sh", {"CRONIUM_HELPER_CLIENT": str(compiled_client(tmp_path_factory))})
    return Client("fallback", "sh", {})


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """One for the session; each run is another user's, so that none sees another's variables."""
    with live_platform.platform(tmp_path_factory.mktemp("platform")) as made:
        yield made


@pytest.fixture(params=["bundled", "api"])
def mode(request: pytest.FixtureRequest) -> str:
    """How the scripts are executed."""
    return str(request.param)


def registered(platform: LivePlatform, options: Sequence[str]) -> dict[str, str]:
    """Makes an execution with these options known to the platform, as a controller would; what its runner is told."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    event = next((json.loads(value) for name, value in pairs if name == "--event"), {})
    handed_over = next((exactjson.loads(value) for name, value in pairs if name == "--input"), None)
    variables = dict(value.split("=", 1) for name, value in pairs if name == "--var")
    execution = f"e-{os.urandom(6).hex()}"
    user = event.get("user") or f"user of {execution}"
    context = live_platform.context_of(event)
    return platform.environment(execution, user, input=handed_over, variables=variables, context=context)


@pytest.fixture
def run(tmp_path: Path, runner_command: list[str], mode: str, request: pytest.FixtureRequest) -> Run:
    """`run(client, script, *options)`: the result object of the script, run by the real runner."""

    def run(client: Client, script: str, *options: str, **environment: str) -> dict[str, Any]:
        path = tmp_path / f"script.{client.extension}"
        shebang = "#!/usr/bin/env bash\n" if client.extension == "sh" else ""
        path.write_text(shebang + script, encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        env = {**inherited, "CRONIUM_STATE_DIR": str(tmp_path / "state"), **client.environment, **environment}
        if mode == "api":
            env |= registered(request.getfixturevalue("platform"), options)
        words = ["run", str(path), "--json", *options]
        if runner_command:
            command = [*runner_command, *words]
            ran = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        else:
            ran = preloaded.run("cronium-runner", words, env=env, timeout=120)
        assert ran.stdout, ran.stderr.decode(errors="replace")
        result = dict(json.loads(ran.stdout))
        assert (result["mode"], result["undelivered"], result["refusal"]) == (mode, 0, None)
        return result

    return run
