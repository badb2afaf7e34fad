"""Speed of work in progress, and the time that is left of it."""

from __future__ import annotations

import bisect

_MIN_WINDOW_S = 1.0  # measured before an ETA is given
_MIN_UPDATES = 4  # in the window
_MAX_RATIO = 1.3  # between the speeds of the last three quarters of the time, for the first ETA
_MAX_LATER_RATIO = 2.0  # for the next: where the newest speed lasts, the ETA is right to within a factor of two
_MAX_SAMPLES = 256


class RateEstimator:
    """Measures speed over the later half of the work so far, so that a slow start does not count.

    The time to the first unit is never part of it: programs that start and graphs that are compiled.
    """

    def __init__(self) -> None:
        self._times: list[float] = []
        self._done: list[float] = []
        self._is_known = False

    def update(self, done: float, now_s: float) -> None:
        """Take the state of the work.

        Args:
            done: units that are done, never fewer than before.
            now_s: seconds of any clock.
        """
        if done <= (self._done[-1] if self._done else 0.0):
            return
        self._times.append(now_s)
        self._done.append(done)
        if len(self._times) > _MAX_SAMPLES:
            del self._times[1:-1:2], self._done[1:-1:2]
        self._is_known = self.per_second is not None and self._is_steady()

    @property
    def per_second(self) -> float | None:
        """Units per second of late; None while it has been measured for less than a second."""
        if len(self._times) < 2 or self._times[-1] - self._window_start < _MIN_WINDOW_S:
            return None
        return self._speed(self._window_start, self._times[-1])

    def eta_s(self, left: float) -> float | None:
        """Seconds to the end; None while they are not known to within a factor of two."""
        speed = self.per_second
        return left / speed if speed and self._is_known else None

    @property
    def _window_start(self) -> float:
        return (self._times[0] + self._times[-1]) / 2

    def _is_steady(self) -> bool:
        updates = len(self._times) - bisect.bisect_left(self._times, self._window_start)
        if updates < _MIN_UPDATES:
            return False
        end, quarter = self._times[-1], (self._times[-1] - self._times[0]) / 4
        speeds = [self._speed(end - (back + 1) * quarter, end - back * quarter) for back in range(3)]
        max_ratio = _MAX_LATER_RATIO if self._is_known else _MAX_RATIO
        return max(speeds) <= max_ratio * min(speeds)

    def _speed(self, start: float, end: float) -> float:
        return (self._done_at(end) - self._done_at(start)) / (end - start)

    def _done_at(self, time_s: float) -> float:
        """Units that were done at a time, between two updates in proportion."""
        after = min(max(1, bisect.bisect_left(self._times, time_s)), len(self._times) - 1)
        (begin, end), (low, high) = self._times[after - 1 : after + 1], self._done[after - 1 : after + 1]
        return low + (high - low) * (time_s - begin) / (end - begin) if end > begin else high
