"""The report of a collection, as a GC request is answered and `gc --json` prints it: its keys and their kinds.

What is collected, and why, is the runner's `retention`.
"""

from typing import Any, Final, TypeGuard

REPORT: Final[dict[str, type]] = {
    "collected": list,
    "payloads": list,
    "freedBytes": int,
    "usedBytes": int,
    "budgetBytes": int,
    "overBytes": int,
    "kept": int,
    "unacknowledged": int,
    "running": int,
    "tombstones": int,
    "failed": dict,
    "isDryRun": bool,
}
"""`collected` are ids, `payloads` digests, `failed` reasons by id; `kept` counts all that have ended, `unacknowledged`
those of them that were not fetched."""


def is_report(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a peer's answer is a report. A newer one may have more keys."""
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in REPORT.items())
