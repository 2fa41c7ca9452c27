"""Explaining this machine: how SSH configurations are read here, and what is wrong with them. No host is asked."""

import subprocess
from collections.abc import Iterator

from cronium_runner.wire.text import last_words

from .doctor import BAD, NOTE, OK, Finding
from .ssh_asking import ASK_SECONDS, program
from .ssh_config import why_not_asked
from .ssh_lines import load


def examine_here() -> Iterator[Finding]:
    """Findings about the SSH configuration of this account."""
    reason, ssh = why_not_asked(), program()
    if reason is None and ssh is not None:
        yield Finding("SSH configuration", OK, f"resolved by {_version(ssh)} ({ssh} -G)")
    else:
        yield Finding(
            "SSH configuration",
            NOTE,
            f"read by cronium itself: {reason}",
            "the same but for Match localnetwork and what is newer than OpenSSH 9.2; docs/ssh-configuration.md",
        )
    configuration = load()
    found = [path for path, stamp in configuration.stamps if stamp is not None]
    yield Finding("SSH configuration files", OK, ", ".join(found) or "none")
    for problem in configuration.problems:
        level = BAD if reason is not None else NOTE  # ssh may know an option that we don't
        yield Finding("SSH configuration files", level, problem, "hosts are refused for it by ssh as well; correct it")


def _version(ssh: str) -> str:
    try:
        done = subprocess.run([ssh, "-V"], capture_output=True, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "ssh"
    return last_words(done.stderr or done.stdout).partition(",")[0]
