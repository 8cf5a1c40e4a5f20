"""How far an instant is from now, in words: the convention of the dashboard and of the command line."""

from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
# An instant further away is a date: people do not count many days.
_MAX_DAYS = 30
# Clocks of two machines differ: what has just happened may lie this far in the future.
_CLOCK_SKEW = 5


def relative(instant: datetime, *, now: datetime) -> str:
    """Return an instant as "just now", "3 min ago", "in 2 h" or "5 d ago"; after 30 days as its date in UTC.

    `relative` in gateway/dashboard/static/pushgate.js follows the same rules.
    """
    seconds = (now - instant).total_seconds()
    if -_CLOCK_SKEW <= seconds < _MINUTE:
        return "just now"
    if -_MINUTE < seconds < 0:
        return "in a moment"
    distance = abs(seconds)
    if distance >= (_MAX_DAYS + 1) * _DAY:
        return instant.astimezone(UTC).strftime("%Y-%m-%d")
    size, unit = next(
        (size, unit) for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")) if distance >= size
    )
    count = f"{int(distance // size)} {unit}"
    return f"{count} ago" if seconds > 0 else f"in {count}"
