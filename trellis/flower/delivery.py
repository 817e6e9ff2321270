"""Whether a message has reached its device.

A SuperLink hands a message out once: what is handed out into a connection that breaks is lost, and neither
end of it notices. A device counts how often it has connected with no message in hand. One that has done so
since a message was sent to it, and then rests although it would have begun, has not got it.

Whoever fetches one that takes long, or waits until it may begin, says so (`Phase.ASKED`): it does not rest.
Only of one that comes inline it knows nothing before that is there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from trellis.flower.backchannel import FleetDevice
from trellis.flower.inline import LARGEST_BYTES
from trellis.payloads import Phase

PATIENCE_S = 3.0
"""A message that was sent while its device connected is pulled within this time, if it is a small one."""
_SLOW_BYTES_PER_S = 100_000
"""Of a message over a link of 1 Mbit/s, with all that goes around it."""
_RESTING = {Phase.WAITING, Phase.UPLOADED}


@dataclass
class Delivery:
    """One message's way to its device.

    Attributes:
        connects: The device's count when the message was sent.
        size: Bytes of its tensors.
    """

    connects: int = 0
    size: int = 0
    _doubted_at: float | None = None

    def failed(self, device: FleetDevice) -> bool:
        """Whether the message is lost, as far as what its device says shows it; asked again and again."""
        if device.connects <= self.connects or device.phase not in _RESTING:
            self._doubted_at = None
            return False
        now = time.monotonic()
        if self._doubted_at is None:
            self._doubted_at = now
        inline_bytes = self.size if self.size <= LARGEST_BYTES else 0
        return now - self._doubted_at >= max(PATIENCE_S, inline_bytes / _SLOW_BYTES_PER_S)
