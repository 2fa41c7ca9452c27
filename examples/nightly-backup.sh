#!/usr/bin/env bash
# A nightly job with variables and input: one archive of the given paths a night, the last KEEP of them kept.
#   cronium run --on db examples/nightly-backup.sh --var DESTINATION=/srv/backup --var KEEP=7 \
#     --input '{"paths": ["/etc", "/var/lib/shop"]}' --execution-id "nightly-$(date +%F)" --json
# In a crontab (where % is written \%); the id makes it start at most once a night, whoever runs it again:
#   15 2 * * *  cronium run --on db ... --execution-id "nightly-$(date +\%F)" --quiet
# In the morning, from any process: cronium wait "nightly-$(date +%F)"
set -euo pipefail
umask 077
destination=$(cronium.getVariable DESTINATION)
keep=$(cronium.getVariable --default 7 KEEP)
paths=()
while path=$(cronium.input "paths.${#paths[@]}" 2>/dev/null); do
  paths+=("$path")
done
((${#paths[@]} > 0)) || { echo "the input names no paths" >&2; exit 2; }

mkdir -p -- "$destination"
archive=$destination/backup-$(date +%Y%m%d-%H%M%S)-$CRONIUM_EXECUTION_ID.tar.gz
trap 'rm -f -- "$archive.part"' EXIT
tar -C / -czf "$archive.part" -- "${paths[@]#/}"
mv -- "$archive.part" "$archive" # a name without .part is a whole archive

# Names begin with the time, so the order of names is that of age.
find "$destination" -maxdepth 1 -name 'backup-*.tar.gz' | sort -r | tail -n "+$((keep + 1))" | while IFS= read -r old; do
  rm -- "$old"
  echo "removed $old"
done
cronium.output archive "$archive"
cronium.output --json bytes "$(stat -c %s -- "$archive")"
cronium.setVariable LAST_BACKUP "$archive"
echo "wrote $archive"
