"""The documentation against the code: codes, links, and the promises' tests exist."""

import re
from pathlib import Path

import pytest

from cronium_runner.lifecycle import MOVES
from cronium_runner.wire.codes import CODES

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("*/cronium_*/**/PROTOCOL.md")])


def test_every_error_code_is_explained_and_nothing_else() -> None:
    explained = re.findall(r"^\| `([a-z_.]+)` \|", (PROJECT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(CODES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_promise_links_to_tests() -> None:
    promises = (PROJECT / "README.md").read_text().split("## Promises")[1].split("## ")[0]
    lines = re.split(r"^\d\. ", promises, flags=re.MULTILINE)[1:]
    assert len(lines) == 8
    for line in lines[:-1]:
        linked = re.findall(r"\]\((tests/[\w/]+\.py)\)", line)
        assert linked, line
        for path in linked:
            assert "def test_" in (PROJECT / path).read_text(), path


def test_every_attack_links_to_tests() -> None:
    page = (PROJECT / "docs/security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| attack |")]
    assert len(rows) > 25
    for row in rows:
        linked = re.findall(r"\]\(\.\./(tests/[\w/]+\.py)\)", row.split(" | ")[-1])
        assert linked, row
        for path in linked:
            assert "def test_" in (PROJECT / path).read_text(), path


def test_a_hole_can_be_reported() -> None:
    assert "](docs/security.md)" in (PROJECT / "SECURITY.md").read_text()
    assert "](../SECURITY.md)" in (PROJECT / "docs/security.md").read_text()


def test_the_life_cycle_in_the_documentation_has_every_state() -> None:
    drawn = (PROJECT / "ARCHITECTURE.md").read_text().split("## The life of an execution")[1].split("1. **")[0]
    assert {state for state in MOVES if state.value not in drawn} == set()


def test_the_screen_in_the_readme_is_one_of_those_that_were_made() -> None:
    shown = (PROJECT / "README.md").read_text().partition("<!-- by scripts/screens -->\n")[2].partition("<!-- /by")[0]
    assert shown.startswith("```\n$ cronium run ")
    assert shown in (PROJECT / "docs/screens.md").read_text()
