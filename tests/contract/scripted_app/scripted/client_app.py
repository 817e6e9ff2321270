"""As in `central_server/flower_app`: a SuperNode's ClientApp hands messages to its agent."""

from trellis.flower import handover

app = handover.app
