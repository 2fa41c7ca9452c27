"""Figures of the fault suite: JSON lines in the file that CRONIUM_FAULT_FIGURES names, and the table made of them.

`scripts/test --faults` sets both variables, runs the tests and prints the table; with `--write` it goes into
docs/reliability.md. A figure that wasn't made again keeps its row there, so one part of the suite can be renewed alone.
What is kept has no date: the page's history has that.
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN = "<!-- figures: scripts/test --faults --write -->"
END = "<!-- end of figures -->"
HEAD = "| what | figure | command |\n|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    name: str
    figure: str
    command: str

    def __str__(self) -> str:
        return f"| {_cell(self.name)} | {_cell(self.figure)} | `{_cell(self.command)}` |\n"


def is_full() -> bool:
    """Whether the suite runs in full (`scripts/test --faults`); else in the bounded form of every `scripts/test`."""
    return os.environ.get("CRONIUM_FAULTS") == "full"


def record(name: str, figure: str, command: str) -> None:
    """Keeps `figure` (a number with its unit, or a sentence) under `name`, with the command that makes it again."""
    print(f"{name}: {figure}  [{command}]")
    if path := os.environ.get("CRONIUM_FAULT_FIGURES"):
        line = json.dumps({"name": name, "figure": figure, "command": command}, ensure_ascii=False)
        # One write of one line in append mode: tests that run at once don't mix theirs.
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def recorded(path: Path) -> list[Row]:
    """The figures of one run, the last of each name."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [Row(line["name"], line["figure"], line["command"]) for line in map(json.loads, text.splitlines())]
    return list({row.name: row for row in rows}.values())


def kept(page: str) -> list[Row]:
    """The rows that a page has between its markers."""
    table = page.split(BEGIN)[1].split(END)[0]
    cells = re.findall(r"^\| (.+?) (?<!\\)\| (.+?) (?<!\\)\| `(.+)` \|$", table, re.MULTILINE)
    return [Row(*(cell.replace("\\|", "|") for cell in row)) for row in cells if row[0] != "what"]


def with_table(page: str, rows: list[Row]) -> str:
    """`page` with these rows in its table: in place of those of the same name, else behind the others."""
    merged = {row.name: row for row in [*kept(page), *rows]}
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{HEAD}{''.join(map(str, merged.values()))}{END}{rest.split(END)[1]}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _main(path: str, *options: str) -> None:
    rows = recorded(Path(path))
    print(HEAD + "".join(map(str, rows)), end="")
    if "--write" in options:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
        print(f"written to {PAGE.name}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
