#!/usr/bin/env bash
# In API mode: reads a variable twice. Whoever changes it meanwhile is heard.
#   cronium run --host web01 --mode api examples/live-rate.sh
set -euo pipefail
echo "before: $(cronium.getVariable RATE)"
sleep "${1:-5}"
after=$(cronium.getVariable RATE)
echo "after:  $after"
cronium.setVariable RATE_SEEN "$after"
cronium.output rate "$after"
