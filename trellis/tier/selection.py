"""Who takes part in a round: a function of the task's seed, the round, and the names of those who are here.

Nothing depends on node IDs or on who came first, so that the same devices give the same rounds again.
"""

from __future__ import annotations

from collections.abc import Sequence

from trellis.descriptor_tiers import Participants
from trellis.flower.checkin import Member
from trellis.quorum import selected_count
from trellis.seeds import generator


def select(
    members: Sequence[Member], participants: Participants, *, seed: int, round_number: int
) -> list[Member]:
    """Return the members selected for a round, by name; all others stand by.

    At most `participants.maximum` take part, always the same ones of the same set. Of those, a random
    fraction is selected.
    """
    by_name = sorted(members, key=lambda member: member.name)
    taking_part = by_name
    if len(by_name) > participants.maximum:
        order = generator(seed, "participants").permutation(len(by_name))
        taking_part = [by_name[index] for index in sorted(order[: participants.maximum])]
    count = selected_count(participants.fraction, len(taking_part))
    if count >= len(taking_part):
        return list(taking_part)
    drawn = generator(seed, "select", round_number).choice(len(taking_part), size=count, replace=False)
    return [taking_part[index] for index in sorted(drawn)]
