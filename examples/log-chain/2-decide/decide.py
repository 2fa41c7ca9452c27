"""Decides from a log's summary whether somebody must be told. `cronium` is there without an import."""

summary = cronium.input()
limit = float(cronium.getVariable("ERROR_LIMIT_PERCENT", 1))

share = 100 * summary["failed"] / summary["requests"]
print(f"{summary['failed']} of {summary['requests']} requests failed: {share:.1f} %, the limit is {limit:g} %")

cronium.setCondition(share > limit)
cronium.setVariable("ERROR_SHARE_PERCENT", round(share, 2))
cronium.output(
    {
        **summary,
        "error_share": round(share, 2),
        "limit": limit,
        "verdict": "page the owner" if share > limit else "all is well",
    }
)
