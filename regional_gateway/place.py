"""Where a region stands in the hierarchy: which tiers are above it, and what that means for a task."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from trellis.descriptor import TaskDescriptor
from trellis.errors import Refused
from trellis.identifiers import CENTRAL, RegionName


class TierAbove(BaseModel):
    """A region above this one, and its Flower front, `host:port`; None where it aggregates nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    region: RegionName
    front: str | None = None


class Place:
    """A region's place.

    Args:
        region: Its name.
        front: Where its devices reach its own Flower front; None where it has none.
        above: The regions above it, the nearest first; above the last is the centre. A gateway learns them
            once its parent answers.
    """

    def __init__(self, region: str, *, front: str | None = None, above: Iterable[TierAbove] = ()) -> None:
        self.region, self.front = region, front
        self.above = tuple(above)

    @property
    def parent(self) -> str:
        """The name of the tier above."""
        return self.above[0].region if self.above else CENTRAL

    def aggregates(self, descriptor: TaskDescriptor) -> bool:
        """Whether this gateway averages the region's updates in a task."""
        return self.front is not None and _is_regional(descriptor, self.region)

    def require_front(self, descriptor: TaskDescriptor) -> None:
        """Return if the gateway can do what a task asks of it.

        Raises:
            Refused: `aggregation`: updates are to be averaged here, and there is no front.
        """
        if self.front is None and _is_regional(descriptor, self.region) and descriptor.desired == "run":
            raise Refused(
                "aggregation",
                f"task {descriptor.task!r} averages updates in region {self.region!r}, whose gateway has no "
                "Flower front for its devices: start it with --front-port PORT, or set "
                f"aggregation.regions: {{{self.region}: {{tier: central}}}}",
            )

    def server(self, descriptor: TaskDescriptor) -> str:
        """Return the front, `host:port`, that this region's gateway is a Flower client of."""
        return self._nearest_front(descriptor) or descriptor.server.address

    def hint(self, descriptor: TaskDescriptor) -> str | None:
        """Return the front that devices are to connect to; None where it is the server that is signed."""
        return self.front if self.aggregates(descriptor) else self._nearest_front(descriptor)

    def source(self, descriptor: TaskDescriptor) -> str:
        """Return whose rounds and states are those of the tier above: a region's name, or `central`."""
        named = (tier.region for tier in self.above if tier.region in descriptor.regions)
        return next(named, CENTRAL)

    def _nearest_front(self, descriptor: TaskDescriptor) -> str | None:
        fronts = (tier.front for tier in self.above if _is_regional(descriptor, tier.region))
        return next(fronts, None)


def _is_regional(descriptor: TaskDescriptor, region: str) -> bool:
    return region in descriptor.regions and descriptor.tier_of(region) == "regional"
