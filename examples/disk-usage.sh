#!/usr/bin/env bash
# How full the local file systems of a host are, as one JSON list. Alone:
#   cronium run --host web01 --json examples/disk-usage.sh
# For a table of many hosts: examples/gather_disk_usage.py
set -uo pipefail
# -l: a network file system that hangs is not asked. What one of them refuses to tell leaves the others in the list.
disks=$(df -Plk 2>/dev/null | awk '
  NR > 1 && $2 > 0 {
    mount = $6
    for (i = 7; i <= NF; i++) mount = mount " " $i
    gsub(/\\/, "\\\\", mount)
    gsub(/"/, "\\\"", mount)
    printf "%s{\"mount\": \"%s\", \"kib\": %d, \"used_kib\": %d}", (count++ ? ", " : ""), mount, $2, $3
  }')
cronium.output --json disks "[$disks]"
