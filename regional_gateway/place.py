"""Where a region stands in the hierarchy: which tiers are above it, and what that means for a task."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from pydantic import BaseModel, ConfigDict

from trellis.descriptor import TaskDescriptor
from trellis.errors import Refused
from trellis.identifiers import CENTRAL, RegionName


class TierAbove(BaseModel):
    """A region above this one.

    Attributes:
        front: Its Flower front, `host:port`; None where it aggregates nothing.
        bridged: Whether it has a broker of its own, below which nothing of the server is heard directly.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    region: RegionName
    front: str | None = None
    bridged: bool = False


class Place:
    """A region's place.

    Args:
        region: Its name.
        front: Where its devices reach its own Flower front; None where it has none.
        above: The regions above it, the nearest first; above the last is the centre. None: a gateway learns
            them once its parent answers.

    Attributes:
        known: Whether it is known what is above.
        bridged: Whether the region has a broker of its own, and its gateway two.
    """

    def __init__(
        self, region: str, *, front: str | None = None, above: Iterable[TierAbove] | None = ()
    ) -> None:
        self.region, self.front, self.bridged = region, front, False
        self.known = above is not None
        self.above = tuple(above or ())

    def learn(self, above: Iterable[TierAbove]) -> None:
        """Go by what is above from now on."""
        self.above, self.known = tuple(above), True

    @property
    def parent(self) -> str:
        """The name of the tier above."""
        return self.above[0].region if self.above else CENTRAL

    def aggregates(self, descriptor: TaskDescriptor) -> bool:
        """Whether this gateway averages the region's updates in a task."""
        return self.front is not None and is_regional(descriptor, self.region)

    def require_front(self, descriptor: TaskDescriptor) -> None:
        """Return if the gateway can do what a task asks of it.

        Raises:
            Refused: `aggregation`: updates are to be averaged here, and there is no front.
        """
        if self.front is None and is_regional(descriptor, self.region) and descriptor.desired == "run":
            raise Refused(
                "aggregation",
                f"task {descriptor.task!r} averages updates in region {self.region!r}, whose gateway has no "
                "Flower front for its devices: start it with --front-port PORT, or set "
                f"aggregation.regions: {{{self.region}: {{tier: central}}}}",
            )

    def require_path(self, descriptor: TaskDescriptor) -> None:
        """Return if a task names every region between this one and the uppermost that it names or needs.

        Raises:
            Refused: `aggregation`: the tier above could not know who stands below it, or would not be heard.
        """
        beyond = self.above[len(self._path(descriptor)) :]
        if not beyond or descriptor.desired != "run":
            return
        left_out = beyond[0].region
        named = [tier.region for tier in beyond if tier.region in descriptor.regions]
        apart = [tier.region for tier in beyond if tier.bridged]
        if apart and not named:
            raise Refused(
                "aggregation",
                f"task {descriptor.task!r} is for {self.region!r} and not for {left_out!r} above it, and "
                f"{apart[0]!r} has a broker of its own, to which its gateway brings only tasks of its own: "
                f"add {left_out!r} to its regions",
            )
        if named:
            raise Refused(
                "aggregation",
                f"task {descriptor.task!r} is for {self.region!r} and {named[0]!r}, and not for "
                f"{left_out!r}, which stands between them: add {left_out!r} to its regions",
            )

    def server(self, descriptor: TaskDescriptor) -> str:
        """Return the front, `host:port`, that this region's gateway is a Flower client of."""
        return self._nearest_front(descriptor) or descriptor.server.address

    def hint(self, descriptor: TaskDescriptor) -> str | None:
        """Return the front that devices are to connect to; None where it is the server that is signed."""
        return self.front if self.aggregates(descriptor) else self._nearest_front(descriptor)

    def cache(self, descriptor: TaskDescriptor) -> str | None:
        """Return the front that devices ask for artefacts before their server; None: no gateway has one."""
        return self.front or self._cache_above(descriptor)

    def artefacts(self, descriptor: TaskDescriptor) -> str:
        """Return the front, `host:port`, that this gateway has artefacts from."""
        return self._cache_above(descriptor) or descriptor.server.address

    def source(self, descriptor: TaskDescriptor) -> str:
        """Return whose rounds and states are those of the tier above: a region's name, or `central`."""
        return next((tier.region for tier in self._path(descriptor)), CENTRAL)

    def _nearest_front(self, descriptor: TaskDescriptor) -> str | None:
        path = self._path(descriptor)
        return next((tier.front for tier in path if is_regional(descriptor, tier.region)), None)

    def _cache_above(self, descriptor: TaskDescriptor) -> str | None:
        return next((tier.front for tier in self._path(descriptor) if tier.front is not None), None)

    def _path(self, descriptor: TaskDescriptor) -> list[TierAbove]:
        """Return the tiers above that take part: those up to the first that the task does not name."""
        return list(takewhile(lambda tier: tier.region in descriptor.regions, self.above))


def is_regional(descriptor: TaskDescriptor, region: str) -> bool:
    """Whether a task averages in a region."""
    return region in descriptor.regions and descriptor.tier_of(region) == "regional"
