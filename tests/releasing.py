"""Clones of the project to make releases of, and `scripts/release` in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner_process import ROOT


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "core.hooksPath=/dev/null"]
    done = subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def has_repository() -> bool:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode == 0


needs_repository = pytest.mark.skipif(not has_repository(), reason="needs git and a repository, not a source archive")


def cloned(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for name in git(ROOT, "ls-files", "--others", "--exclude-standard", "--modified").splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    changes = folder / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("- unreleased", "- 2026-12-01", 1))
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    dates = {"GIT_AUTHOR_DATE": "2026-12-01T12:00:00Z", "GIT_COMMITTER_DATE": "2026-12-01T12:00:00Z"}
    git(folder, "add", "--all")
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "core.hooksPath=/dev/null"]
    words = ["git", *who, "commit", "--quiet", "--allow-empty", "--message", "changes"]
    subprocess.run(words, cwd=folder, env=os.environ | dates, check=True)


def release(checkout: Path, *words: object, umask: int = 0o022, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(checkout / "scripts" / "release.py"), *map(str, words)]
    who = {"GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.com"}
    environment = os.environ | who | variables
    return subprocess.run(command, cwd=checkout, env=environment, umask=umask, capture_output=True, text=True)
