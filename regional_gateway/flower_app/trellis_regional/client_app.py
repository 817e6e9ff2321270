"""What a device with `--link supernode` runs of this FAB: it hands each message to the agent installed there.

All other devices take no code from a server.
"""

from trellis.flower import handover

app = handover.app  # an assignment, because Flower looks for one in this file's text
