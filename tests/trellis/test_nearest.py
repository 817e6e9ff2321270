"""The name that was probably meant."""

from __future__ import annotations

from trellis.nearest import did_you_mean, nearest


def test_the_most_alike_of_the_known_is_suggested_and_nothing_where_none_is_alike() -> None:
    known = ("fedavg", "fedprox", "fedadam")
    assert nearest("fedadm", known) == "fedadam"
    assert nearest("krum", known) is None
    assert did_you_mean("fedavgg", known, before="; ", after=" ") == "; did you mean 'fedavg'? "
    assert did_you_mean("krum", known, before="; ", after=" ") == ""
