"""Latencies in constant memory."""

from collections import Counter
from math import exp, log

# Buckets grow by this factor, so a percentile is at most half a percent off.
_GROWTH = log(1.01)


class Latencies:
    """Counts of latencies, in seconds. Percentiles are within half a percent; the greatest is exact."""

    def __init__(self) -> None:
        self.greatest_s = 0.0
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self.greatest_s = max(self.greatest_s, seconds)
        self._counts[round(log(max(seconds, 1e-6)) / _GROWTH)] += 1

    def percentile_s(self, percent: float) -> float | None:
        """Returns the least latency that this percentage does not exceed; None before any was added."""
        left = percent / 100 * self._counts.total()
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return min(exp(bucket * _GROWTH), self.greatest_s)
        return None
