"""How many requests an execution may make, or bytes send: a token bucket for each. In memory: a restart fills them."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

# Executions remembered. One that is forgotten begins with a full bucket again; a controller has far fewer at a time.
_REMEMBERED: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    level: float
    filled_at: float


class RateLimit:
    """A token bucket for each execution. The caller passes the time, in seconds of a monotonic clock."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, execution_id: str, now: float, amount: int = 1) -> float:
        """0 when the request may go on, else after how many seconds it may. `amount` is at most what a minute has."""
        bucket = self._buckets.get(execution_id)
        if bucket is None:
            bucket = self._buckets[execution_id] = _Bucket(self._most, now)
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(execution_id)
        per_second = self._most / 60
        bucket.level = min(self._most, bucket.level + max(0.0, now - bucket.filled_at) * per_second)
        bucket.filled_at = now
        if bucket.level < amount:
            return (amount - bucket.level) / per_second
        bucket.level -= amount
        return 0.0
