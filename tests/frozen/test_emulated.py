"""The binary for aarch64, executed by qemu: a job, the helpers, the agent, and its way to such a host."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import emulation
from runner_process import ROOT

pytestmark = [
    pytest.mark.frozen,
    pytest.mark.skipif(emulation.missing() is not None, reason=emulation.missing() or ""),
    pytest.mark.skipif(os.uname().machine == "aarch64", reason="this machine is of that architecture"),
]

PATIENCE = 300.0
JOB = """#!/bin/sh
cronium.setVariable COLOUR blue
cronium.output "{\\"name\\": \\"$(cronium.input name)\\", \\"colour\\": \\"$(cronium.getVariable COLOUR)\\"}"
exit 3
"""


def test_a_job_and_an_agent_on_aarch64(aarch64_root: Path) -> None:
    [binary] = (ROOT / "dist").glob("cronium-runner-*-linux-aarch64")
    shutil.copy(binary, aarch64_root / "runner")
    (aarch64_root / "job.sh").write_text(JOB)

    def start(*words: str) -> subprocess.CompletedProcess[bytes]:
        places = ("PATH=/bin", "HOME=/root", "CRONIUM_STATE_DIR=/state")
        command = emulation.command(aarch64_root, "/bin/env", "-i", *places, "/runner", *words)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)

    done = start("run", "/job.sh", "--input", '{"name": "Ada"}', "--json")
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["output"] == {"name": "Ada", "colour": "blue"}
    assert result["variables"] == {"COLOUR": "blue"}
    assert b"cronium-agent" in start("agent").stdout
    assert b", aarch64, " in start("doctor").stdout
