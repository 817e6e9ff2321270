"""What is done with a finished round, in the one order in which a crash at any moment loses nothing."""

from __future__ import annotations

from trellis.flower.backchannel import RoundRecord
from trellis.flower.channel import ServiceChannel
from trellis.flower.grid import TrellisGrid
from trellis.tier.checkpoints import Checkpoint, Checkpoints
from trellis.tier.records import done


def finish_round(
    after: Checkpoint,
    record: RoundRecord,
    *,
    rounds: int,
    lost: int,
    checkpoints: Checkpoints,
    channel: ServiceChannel,
    grid: TrellisGrid,
) -> None:
    """Write the checkpoint of a round, then report its record, then announce that it is done.

    Raises:
        Unavailable: The service is gone; the record of the round before may not have been heard.
        OSError: The checkpoint cannot be written; nothing was reported.
    """
    # The next start tells the service of the last checkpoint's record alone: that of the one before has been
    # heard by now.
    channel.flush()
    # Written before it is acted on: what is reported below has happened.
    checkpoints.write(after)
    channel.record(record)
    grid.say(done(record, rounds, lost=lost))
