"""What a host says of an uninstallation is checked before it is believed."""

from typing import Any

import pytest

from cronium_controller.deploy.uninstall import _checked

RECORDS = {"path": "/s", "executions": 1, "running": 0, "unfetched": 0, "kept": ["settings.yaml"]}
REPORT: dict[str, Any] = {"removed": ["/r/a"], "kept": {"/r/b": "used"}, "records": RECORDS, "isDryRun": False}


def test_a_whole_report_is_believed() -> None:
    assert _checked(REPORT) == REPORT
    assert _checked({**REPORT, "records": None, "later": 1})["records"] is None


@pytest.mark.parametrize(
    "report",
    [
        None,
        [],
        {},
        {**REPORT, "removed": [1]},
        {**REPORT, "removed": "/r/a"},
        {**REPORT, "kept": {"/r/b": None}},
        {**REPORT, "kept": []},
        {**REPORT, "isDryRun": 1},
        {**REPORT, "records": []},
        {**REPORT, "records": {**RECORDS, "executions": True}},
        {**REPORT, "records": {**RECORDS, "running": "0"}},
        {**REPORT, "records": {**RECORDS, "path": None}},
        {**REPORT, "records": {**RECORDS, "kept": [1]}},
        {**REPORT, "records": {**RECORDS, "kept": "ab"}},
    ],
)
def test_a_report_of_other_types_is_not(report: Any) -> None:
    with pytest.raises(ValueError, match="no report"):
        _checked(report)
