"""State directories with thousands of records, as an account has them that ran a job every minute for two weeks.

Each record is a copy of one that a real runner has made, under an id and with times of its own.
"""

import itertools
import os
import time
from pathlib import Path
from typing import Final

from runner_process import Host

AGE_SECONDS: Final = 6 * 86_400.0
"""The oldest is as old: a collection with default settings removes none."""
_SCRIPT: Final = "echo backing up; echo a complaint >&2; cronium.output '{}'; exit {}\n"
_KINDS: Final = (("quiet", "true\n"), ("loud", _SCRIPT.format("done", 0)), ("failed", _SCRIPT.format("no", 3)))


def add_records(hosts: list[Host], folder: Path, *, kept: int, collected: int) -> list[str]:
    """Adds records to the state directory that `hosts` share, in equal parts by the runners of each; returns their ids.

    Most were fetched; every tenth of those kept was not. `folder` receives the models that are copied.
    """
    models = [model for number, host in enumerate(hosts) for model in _models(host, folder / f"{number}")]
    tombstones = [model for number, host in enumerate(hosts) for model in _models(host, folder / f"c{number}", 0)]
    names = []
    began = time.time()
    for kind, count, sources in (("kept", kept, models), ("gone", collected, tombstones)):
        for number, (model, content) in zip(range(count), itertools.cycle(sources), strict=False):
            name = f"{kind}-{number:05d}-nightly-backup-of-web{number % 100:02d}"
            then = began - AGE_SECONDS * (1 - number / count)
            _copy(hosts[0].execution(name), model, name, content, then, is_fetched=kind == "gone" or number % 10 != 9)
            names.append(name)
    return names


def _models(host: Host, folder: Path, older_than: float | None = None) -> list[tuple[str, dict[str, bytes]]]:
    """The ids and files of one record of each kind, made and, with `older_than`, collected in a state of their own."""
    maker = Host(folder, Path(host.environment["CRONIUM_INSTALL_DIR"]))
    folder.mkdir(parents=True)
    maker.environment = {**host.environment, "CRONIUM_STATE_DIR": str(maker.state)}
    maker.executable = host.executable
    for name, text in _KINDS:
        maker.run("run", "--execution-id", f"model-{name}", maker.script(text, f"{name}.sh"))
    if older_than is not None:
        maker.run("gc", "--older-than", str(older_than))
    return [
        (path.name, {file.name: file.read_bytes() for file in path.iterdir()})
        for path in sorted((maker.state / "executions").iterdir())
    ]


def _copy(target: Path, model: str, name: str, content: dict[str, bytes], then: float, *, is_fetched: bool) -> None:
    os.makedirs(target, 0o700)
    for file, found in content.items():
        changed = found.replace(model.encode(), name.encode())
        if file == "state.jsonl" and not is_fetched:
            changed = b"".join(line for line in changed.splitlines(True) if b'"acknowledged":true}' not in line)
        with open(os.open(target / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(changed)
        os.utime(target / file, (then, then))
