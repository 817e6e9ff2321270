"""Topics: the builder and the parser are inverse, and nothing but ours is parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.errors import ConfigError, PayloadError
from trellis.identifiers import PATTERN
from trellis.topics import Address, Kind, Topics

NAMES = st.from_regex(PATTERN, fullmatch=True)
REGIONS = NAMES.filter(lambda name: name != "central")
TOPICS = Topics()


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    kind = draw(st.sampled_from(Kind))
    names = {field: draw(REGIONS if field == "region" else NAMES) for field in sorted(kind.fields)}
    return Address(kind, **names)


@given(addresses(), st.sampled_from(["trellis/v1", "t", "a/b/c/d", "trellis/v1/central"]))
def test_parsing_is_the_inverse_of_rendering(address: Address, base: str) -> None:
    topics = Topics(base)
    assert topics.parse(topics.render(address)) == address


@given(
    st.text(max_size=200) | st.lists(st.sampled_from(["central", "tasks", "a", "state", ""])).map("/".join)
)
def test_whatever_is_parsed_renders_to_itself_and_all_else_is_a_payload_error(tail: str) -> None:
    for topic in (tail, f"trellis/v1/{tail}"):
        try:
            address = TOPICS.parse(topic)
        except PayloadError:
            continue
        assert TOPICS.render(address) == topic


@pytest.mark.parametrize(
    ("kind", "topic"),
    [
        (Kind.CENTRAL_STATE, "trellis/v1/central/state"),
        (Kind.CENTRAL_TASK_STATE, "trellis/v1/central/tasks/mnist/state"),
        (Kind.CENTRAL_TASK_ROUND, "trellis/v1/central/tasks/mnist/round"),
        (Kind.GATEWAY_STATE, "trellis/v1/eu-1/gateway/state"),
        (Kind.GATEWAY_LOG, "trellis/v1/eu-1/gateway/tasks/mnist/log"),
        (Kind.DESCRIPTOR, "trellis/v1/eu-1/tasks/mnist/descriptor"),
        (Kind.TASK_STATUS, "trellis/v1/eu-1/tasks/mnist/status"),
        (Kind.TASK_ROUND, "trellis/v1/eu-1/tasks/mnist/round"),
        (Kind.DEVICE_STATE, "trellis/v1/eu-1/devices/cam-7/state"),
        (Kind.DEVICE_INFO, "trellis/v1/eu-1/devices/cam-7/info"),
        (Kind.EXECUTION, "trellis/v1/eu-1/devices/cam-7/tasks/mnist/execution"),
        (Kind.PROGRESS, "trellis/v1/eu-1/devices/cam-7/tasks/mnist/progress"),
        (Kind.LOG, "trellis/v1/eu-1/devices/cam-7/tasks/mnist/log"),
    ],
)
def test_every_kind_stands_where_the_design_says(kind: Kind, topic: str) -> None:
    names = {"region": "eu-1", "device": "cam-7", "task": "mnist"}
    assert TOPICS.path(kind, **{field: names[field] for field in kind.fields}) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "trellis/v1",
        "trellis/v1/",
        "trellis/v2/central/state",
        "trellis/v1central/state",
        "/trellis/v1/central/state",
        "trellis/v1/central/state/",
        "trellis/v1/central/gateway/state",
        "trellis/v1/central/devices/cam-7/state",
        "trellis/v1/central/tasks/mnist/descriptor",
        "trellis/v1/central/tasks/mnist/status",
        "trellis/v1/eu-1/state",
        "trellis/v1/eu-1/tasks//round",
        "trellis/v1/eu-1/tasks/mnist/descriptors",
        "trellis/v1/EU-1/gateway/state",
        "trellis/v1/eu_1/gateway/state",
        "trellis/v1/-eu/gateway/state",
        "trellis/v1/eu-1\n/gateway/state",
        "trellis/v1/é/gateway/state",
        "trellis/v1/\u0661/gateway/state",
        "trellis/v1/+/gateway/state",
        "trellis/v1/#",
        "trellis/v1/../gateway/state",
        f"trellis/v1/{'a' * 64}/gateway/state",
        f"trellis/v1/eu-1/devices/{'d' * 100_000}/state",
        "trellis/v1/" + "a/" * 100_000,
    ],
)
def test_a_foreign_or_malformed_topic_is_a_payload_error_of_bounded_length(topic: str) -> None:
    with pytest.raises(PayloadError) as caught:
        TOPICS.parse(topic)
    assert len(str(caught.value)) < 600


def test_an_identifier_of_63_characters_passes_and_one_of_64_does_not() -> None:
    assert TOPICS.parse(f"trellis/v1/{'a' * 63}/gateway/state").region == "a" * 63
    with pytest.raises(PayloadError, match="1 to 63"):
        Address(Kind.GATEWAY_STATE, region="a" * 64)


def test_central_is_no_regions_name() -> None:
    with pytest.raises(PayloadError, match="central server's own name"):
        Address(Kind.GATEWAY_STATE, region="central")


def test_a_name_that_the_kind_has_not_is_refused() -> None:
    with pytest.raises(PayloadError, match="has no device, got 'cam-7'"):
        Address(Kind.TASK_ROUND, region="eu-1", task="mnist", device="cam-7")
    with pytest.raises(PayloadError, match="task ''"):
        Address(Kind.TASK_ROUND, region="eu-1")


def test_a_filter_matches_every_name_that_is_left_out() -> None:
    assert TOPICS.filter(Kind.EXECUTION, region="eu-1") == "trellis/v1/eu-1/devices/+/tasks/+/execution"
    assert TOPICS.filter(Kind.CENTRAL_STATE) == "trellis/v1/central/state"


@pytest.mark.parametrize("base", ["", "/", "a//b", "a/", "/a", "a/+", "a/#", "$SYS", "a b", "a\0"])
def test_a_base_that_would_break_topics_is_a_config_error(base: str) -> None:
    with pytest.raises(ConfigError, match="non-empty levels"):
        Topics(base)
