"""Publishing lanes: equal parts of the connections, so that several processes relay at the same time.

All requests of a connection are in one lane, by the first digit of its random id: the order is kept. Each
number of lanes halves the lanes of the next smaller one, so lanes form a binary tree, whose root is the
single lane of all connections.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, not_

_DIGITS = "0123456789abcdef"
# Nodes of the tree are numbered from 1 to 31; behind them is a number for each number of lanes.
_CANDIDATES = 32


@dataclass(frozen=True, slots=True)
class PublishingLane:
    """Lane `number`, counted from 0, of `of` lanes: 1, 2, 4, 8 or 16."""

    number: int = 0
    of: int = 1

    def includes(self, connection: ColumnElement[str]) -> ColumnElement[bool]:
        """Return the condition that a connection is in this lane, of several.

        Sets of digits, not ranges, because collations order text differently. The first lane also has the
        connections whose ids do not begin with a digit.
        """
        first = func.substr(connection, 1, 1)
        size = len(_DIGITS) // self.of
        if self.number == 0:
            return not_(first.in_(tuple(_DIGITS[size:])))
        return first.in_(tuple(_DIGITS[self.number * size : (self.number + 1) * size]))

    def key(self, lock: int) -> int:
        """Return the key of the exclusive lock of this lane; the single lane has the lock itself."""
        return _key(lock, self.of + self.number)

    def shared_keys(self, lock: int) -> list[int]:
        """Return the keys of the larger lanes that contain this lane: a process of the lane shares them.

        While it does, no process holds a larger lane exclusively, nor an earlier version the lock itself.
        """
        node, keys = (self.of + self.number) // 2, []
        while node:
            keys.append(_key(lock, node))
            node //= 2
        return keys[::-1]

    def candidates_key(self, lock: int) -> int:
        """Return the key that is shared by the processes which relay with this number of lanes."""
        return _key(lock, _CANDIDATES + self.of)


SINGLE = PublishingLane()
"""The lane of all connections."""


def _key(lock: int, node: int) -> int:
    """Return a key of 64 bits: those of locks without lanes have 32."""
    return lock if node == 1 else (lock << 32) + node
