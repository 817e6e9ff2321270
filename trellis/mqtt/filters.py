"""Topic filters by the rules of MQTT 3.1.1, section 4.7."""

from __future__ import annotations

from trellis.errors import PayloadError


def match(filter: str, topic: str) -> bool:
    """Return whether `topic` is within `filter`.

    `+` stands for one level, `#` at the end for any number of levels, none included. A filter that
    starts with a wildcard does not match the broker's own topics, which start with `$` (4.7.2).
    """
    if topic.startswith("$") and filter[:1] in ("+", "#"):
        return False
    wanted, levels = filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


def check_filter(filter: str) -> str:
    """Return `filter` if a broker may be asked for it.

    Raises:
        PayloadError: It is empty, too long, or has a wildcard where none may stand.
    """
    levels = filter.split("/")
    if not filter or "\0" in filter or len(filter.encode()) > 65535:
        raise PayloadError(f"topic filter {filter[:80]!r}", "must be 1 to 65535 bytes without NUL")
    if any("#" in level and level != "#" for level in levels) or "#" in levels[:-1]:
        raise PayloadError(f"topic filter {filter[:80]!r}", "'#' must be a whole level, and the last one")
    if any("+" in level and level != "+" for level in levels):
        raise PayloadError(f"topic filter {filter[:80]!r}", "'+' must be a whole level")
    return filter


def check_topic(topic: str) -> str:
    """Return `topic` if one may publish to it.

    Raises:
        PayloadError: It is empty, too long, or has a wildcard.
    """
    if not topic or "\0" in topic or len(topic.encode()) > 65535:
        raise PayloadError(f"topic {topic[:80]!r}", "must be 1 to 65535 bytes without NUL")
    if "+" in topic or "#" in topic:
        raise PayloadError(f"topic {topic[:80]!r}", "must have no '+' or '#': those are for filters")
    return topic
