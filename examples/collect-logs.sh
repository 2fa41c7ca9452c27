#!/usr/bin/env bash
# Prints the last lines of the files that it is given. Alone:
#   cronium run --host web01 examples/collect-logs.sh --var LINES=500 -- /var/log/syslog
# Into a file for each host: examples/collect_logs.py
set -uo pipefail
lines=$(cronium.getVariable --default 1000 LINES)
failed=0
for file; do
  echo "==> $file <=="
  tail -n "$lines" -- "$file" || failed=1
done
exit $failed
