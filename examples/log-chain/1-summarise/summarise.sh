#!/bin/bash
# Counts an access log (nginx, with $request_time as the seventh field from its "combined" ones) and hands the
# numbers on. The log comes with the payload unless the input names another file.
set -euo pipefail

log=$(cronium.input log 2>/dev/null || echo access.log)
echo "reading $log on $(uname -n): $(wc -l < "$log") lines"

summary=$(awk '
    { requests++; status[int($9 / 100)]++; bytes += $10; client[$1]++ }
    $9 >= 500 { broken[$7]++ }
    END {
        for (path in broken) if (broken[path] > most) { most = broken[path]; worst = path }
        for (ip in client) clients++
        printf "{\"requests\":%d,\"clients\":%d,\"bytes\":%d,", requests, clients, bytes
        printf "\"ok\":%d,\"redirected\":%d,\"refused\":%d,\"failed\":%d,", status[2], status[3], status[4], status[5]
        printf "\"worst_path\":\"%s\",\"worst_count\":%d}", worst, most
    }' "$log")

echo "$summary" | cronium.output
cronium.setVariable LAST_LOG "$log"
