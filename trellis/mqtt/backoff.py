"""How long a client waits between its tries at a broker."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that grow apart from each other, and that are long only where the broker has been away for long.

    Each is drawn between the shortest and three times the one before it ("decorrelated jitter": M. Brooker,
    "Exponential Backoff and Jitter", AWS Architecture Blog, 2015), so that a fleet that lost its broker in
    one moment does not come back in one. A broker that is merely started again finds everybody within
    `soon_s`; after an outage of more than a minute it is a twentieth of the outage, and `late_s` at most:
    thousands of devices then come spread over half a minute, and none is away by more than 5 % longer than
    its broker was.

    Attributes:
        first_s: The shortest wait.
        soon_s: The longest while the broker has been away for no more than a minute.
        late_s: The longest at all.
    """

    first_s: float = 0.2
    soon_s: float = 3.0
    late_s: float = 30.0

    def most_s(self, away_s: float) -> float:
        """Return the longest wait after so long without a connection that held."""
        return min(max(self.soon_s, away_s / 20), self.late_s)

    def wait_s(self, last_s: float, away_s: float) -> float:
        """Return the next wait, `last_s` being the one before it, or 0 for the first."""
        longest = min(3 * max(last_s, self.first_s), self.most_s(away_s))
        return random.uniform(self.first_s, longest)  # noqa: S311 - no secret
