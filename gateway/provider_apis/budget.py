"""How many requests one identity may send to one host."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.provider_apis.operation import ApiLimited

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteLimit:
    """A provider's limit of requests that write: at most `requests` in any period of `seconds`.

    `at_once` of them may be sent at once, the others evenly, which together is never more than the limit.
    """

    requests: int
    seconds: float
    at_once: int


class _Bucket:
    """A bucket that is full at first, and refills evenly."""

    def __init__(self, capacity: float, *, per_second: float, now: float) -> None:
        self._capacity, self._per_second = capacity, per_second
        self._left, self._at = capacity, now
        self._closed_until = now

    def seconds(self, now: float) -> float:
        """Return after how many seconds a request may pass; not above 0 if it may now."""
        self._left = min(self._capacity, self._left + (now - self._at) * self._per_second)
        self._at = now
        return max((1 - self._left) / self._per_second, self._closed_until - now)

    def take(self) -> None:
        self._left -= 1

    def close(self, until: float) -> None:
        """Let nothing pass for a time."""
        self._closed_until = max(self._closed_until, until)


def _of_limit(limit: WriteLimit, share: float, now: float) -> _Bucket:
    share = share if limit.seconds >= _HOUR else 1
    evenly = limit.requests - limit.at_once
    return _Bucket(limit.at_once * share, per_second=evenly * share / limit.seconds, now=now)


class Budget:
    """The requests that one identity may send to one host: at most `per_hour`, and none before `wait` ends.

    A bucket of `per_hour` requests that refills evenly, and one for each of the `write_limits`. Requests of a
    part, which is a `share`, count for the `whole` as well. Of the limits of shorter periods, a part may use
    all, because the others wait for that only a moment.
    """

    def __init__(
        self,
        per_hour: int,
        *,
        write_limits: Sequence[WriteLimit] = (),
        share: float = 1.0,
        whole: "Budget | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with full buckets."""
        self._clock, self._whole, now = clock, whole, clock()
        requests = int(per_hour * share)
        self._all = _Bucket(requests, per_second=requests / _HOUR, now=now)
        self._writes = [
            _of_limit(limit, share if limit.seconds >= _HOUR else 1, now) for limit in write_limits
        ]

    def take(self, *, is_write: bool = False) -> None:
        """Count a request. Raise `ApiLimited` if it must wait."""
        buckets, now = self.buckets(is_write=is_write), self._clock()
        seconds = max(bucket.seconds(now) for bucket in buckets)
        if seconds > 0:
            raise ApiLimited(
                f"the limit of API requests is reached; requests go on in {seconds:.0f} s", seconds=seconds
            )
        for bucket in buckets:
            bucket.take()

    def wait(self, seconds: float) -> None:
        """Let no request pass for so long, because the provider said so."""
        self._all.close(self._clock() + seconds)
        if self._whole is not None:
            self._whole.wait(seconds)

    def buckets(self, *, is_write: bool) -> list[_Bucket]:
        """Return the buckets that a request is taken from, also those of the whole."""
        own = [self._all, *(self._writes if is_write else ())]
        return own if self._whole is None else own + self._whole.buckets(is_write=is_write)
