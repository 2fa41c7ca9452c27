"""How the conformance suite starts the runner, and the clients it runs every case with.

`CRONIUM_TEST_RUNNER` chooses another runner (a frozen binary, an installed one); the default is this checkout's.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helper_clients import Client, Run, compiled_client


@pytest.fixture(scope="session")
def runner_command() -> list[str]:
    """The words that start the runner."""
    chosen = os.environ.get("CRONIUM_TEST_RUNNER")
    return shlex.split(chosen) if chosen else [sys.executable, "-m", "cronium_runner"]


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


@pytest.fixture
def run(tmp_path: Path, runner_command: list[str]) -> Run:
    """`run(client, script, *options)`: the result object of the script, run by the real runner."""

    def run(client: Client, script: str, *options: str, **environment: str) -> dict[str, Any]:
        path = tmp_path / f"script.{client.extension}"
        shebang = "#!/usr/bin/env bash\n" if client.extension == "sh" else ""
        path.write_text(shebang + script, encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        env = {**inherited, "CRONIUM_STATE_DIR": str(tmp_path / "state"), **client.environment, **environment}
        command = [*runner_command, "run", str(path), "--json", *options]
        ran = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
        assert ran.stdout, ran.stderr.decode(errors="replace")
        return dict(json.loads(ran.stdout))

    return run
