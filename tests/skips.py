"""The end of a test run: each reason to skip once, so that a missing tool is seen by its name."""

from collections import Counter
from collections.abc import Iterable

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A section of reasons, each with the number of tests that it skipped."""
    skipped = reasons(terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.section("skipped")
        for reason, tests in skipped:
            terminalreporter.write_line(f"{tests:>5}  {reason}")


def reasons(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[tuple[str, int]]:
    """Reasons and numbers of tests, the largest number first."""
    told = (report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple))
    counted = Counter(reason.removeprefix("Skipped: ") for reason in told)
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))
