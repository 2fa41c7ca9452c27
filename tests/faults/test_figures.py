"""The table of docs/reliability.md: figures go in, stay, and are replaced by name."""

import json
from pathlib import Path

import pytest

from faults import figures
from faults.figures import BEGIN, END, Row

PAGE = f"# Title\n\n{BEGIN}\n{figures.HEAD}| old | 1 \\| 2 | `make old` |\n| both | 1 | `make both` |\n{END}\n\nmore\n"


def test_a_figure_is_one_line_and_only_kept_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "figures"
    monkeypatch.delenv("CRONIUM_FAULT_FIGURES", raising=False)
    figures.record("a", "1", "c")
    assert not kept.exists()
    monkeypatch.setenv("CRONIUM_FAULT_FIGURES", str(kept))
    figures.record("a", "1 é", "c")
    figures.record("b", "2", "c")
    figures.record("a", "3", "c")
    assert [json.loads(line)["figure"] for line in kept.read_text().splitlines()] == ["1 é", "2", "3"]
    assert figures.recorded(kept) == [Row("a", "3", "c"), Row("b", "2", "c")]
    assert capsys.readouterr().out.count("\n") == 4


def test_rows_are_replaced_by_name_and_others_stay() -> None:
    page = figures.with_table(PAGE, [Row("both", "2", "make both"), Row("new", "a\nb | c", "make new")])
    assert figures.kept(page) == [
        Row("old", "1 | 2", "make old"),
        Row("both", "2", "make both"),
        Row("new", "a b | c", "make new"),
    ]
    assert page.startswith("# Title\n")
    assert page.endswith(f"{END}\n\nmore\n")
    assert figures.with_table(page, []) == page


def test_the_page_has_the_table() -> None:
    figures.kept(figures.PAGE.read_text())
