#!/usr/bin/env bash
# Restarts a service and succeeds only once it is healthy. A quarter of the hosts at a time, and no further host after
# the first that stays ill:
#   cronium run --on web --serial 25% --stop-on-failure examples/rolling-restart.sh --var SERVICE=nginx
# With commands of your own, and 2 minutes to become healthy:
#   cronium run --on web --serial 1 --stop-on-failure examples/rolling-restart.sh --var SERVICE=shop \
#     --var HEALTH='curl -fsS -m 5 http://127.0.0.1:8080/health' --var PATIENCE=120
set -euo pipefail
service=$(cronium.getVariable SERVICE)
restart=$(cronium.getVariable --default "systemctl restart $service" RESTART)
health=$(cronium.getVariable --default "systemctl is-active --quiet $service" HEALTH)
patience=$(cronium.getVariable --default 60 PATIENCE)

bash -c "$restart"
began=$SECONDS
until bash -c "$health" >/dev/null; do
  if ((SECONDS - began >= patience)); then
    echo "$service is not healthy after $patience s: $health" >&2
    exit 1
  fi
  sleep 0.5
done
echo "$service is healthy"
cronium.output --json seconds_until_healthy $((SECONDS - began))
