"""Check-in: a node is a device once both say so with the nonce that the server handed out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.checkin import CheckIn
from trellis.payloads import ExecutionState, Phase


class FakeGrid(Grid):
    """A SuperLink of a test's size: what is pushed stands in `sent`; `replies` are pulled once."""

    def __init__(self) -> None:
        self.sent: dict[str, Message] = {}
        self.replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message_id = f"q{len(self.sent) + 1}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop(key) for key in message_ids if key in self.replies]

    def answer(self, message_id: str, **answer: Any) -> None:
        content = RecordDict({"config": ConfigRecord(answer)})
        self.replies[message_id] = Message(content, reply_to=self.sent[message_id])

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        raise NotImplementedError

    def send_and_receive(self, *_: Any, **__: Any) -> list[Message]:
        raise NotImplementedError


class Desk:
    """A check-in with its grid, and what it said of queries."""

    def __init__(self) -> None:
        self.grid = FakeGrid()
        self.asked: list[int] = []
        self.checkin = CheckIn(self.grid, "mnist", self.asked.append)

    def step(self, *devices: FleetDevice) -> list[tuple[str, int, int]]:
        view = FleetView(version=1, devices=devices)
        self.checkin.step(view)
        return [(member.name, member.node_id, member.samples) for member in self.checkin.members(view)]

    def nonce(self, message_id: str) -> str:
        return str(self.grid.sent[message_id].content.config_records["config"]["nonce"])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def device(name: str = "cam-7", node_id: int | None = 5, **change: Any) -> FleetDevice:
    fields = {"region": "eu-1", "online": True, "state": ExecutionState.IN_PROGRESS}
    return FleetDevice.model_validate({**fields, "device": name, "node_id": node_id, **change})


def test_a_device_that_shows_the_nonce_and_answers_as_itself_is_a_member(desk: Desk) -> None:
    assert desk.step(device()) == []
    assert desk.asked == [1]
    query = desk.grid.sent["q1"]
    assert (query.metadata.dst_node_id, query.metadata.message_type) == (5, "query")
    assert query.content.config_records["config"]["task"] == "mnist"
    assert len(desk.nonce("q1")) == 32
    desk.grid.answer("q1", region="eu-1", device="cam-7", nonce=desk.nonce("q1"), samples=60)
    shown = device(nonce=desk.nonce("q1"), message_id="q1")
    assert desk.step(shown) == [("eu-1/cam-7", 5, 60)]
    assert desk.step(shown) == [("eu-1/cam-7", 5, 60)]
    assert desk.asked == [1], "it was asked again"
    assert desk.checkin.name_of(5) == "eu-1/cam-7"
    assert desk.checkin.name_of(6) == "6"


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"nonce": "0" * 32, "message_id": "q1"},
        {"message_id": "q1"},
        {"nonce": "right", "message_id": "q2"},
    ],
)
def test_an_execution_without_the_nonce_proves_nothing(desk: Desk, shown: dict[str, Any]) -> None:
    desk.step(device())
    desk.grid.answer("q1", region="eu-1", device="cam-7", nonce=desk.nonce("q1"), samples=60)
    if shown.get("nonce") == "right":
        shown = {**shown, "nonce": desk.nonce("q1")}
    assert desk.step(device(**shown)) == []
    assert "q1" in desk.grid.replies, "the answer was pulled without proof"


@pytest.mark.parametrize(
    "answer",
    [
        {"region": "eu-1", "device": "cam-8"},
        {"region": "us-1", "device": "cam-7"},
        {"region": "eu-1", "device": "cam-7", "nonce": "0" * 32},
        {},
    ],
)
def test_a_node_that_answers_as_another_is_no_member(
    desk: Desk, answer: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    desk.step(device())
    desk.grid.answer("q1", **{"nonce": desk.nonce("q1"), "samples": 60, **answer})
    assert desk.step(device(nonce=desk.nonce("q1"), message_id="q1")) == []
    assert "but device=eu-1/cam-7 claims it" in caplog.text


def test_a_node_that_answers_with_an_error_is_no_member(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.step(device())
    desk.grid.replies["q1"] = Message(Error(1, "no data"), reply_to=desk.grid.sent["q1"])
    assert desk.step(device(nonce=desk.nonce("q1"), message_id="q1")) == []
    assert "check-in of device=eu-1/cam-7 failed: no data" in caplog.text


def test_a_query_that_never_reached_its_device_is_sent_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.flower.delivery.PATIENCE_S", 0.0)
    desk.step(device(phase=Phase.WAITING, connects=1))
    assert desk.step(device(phase=Phase.CONNECTING, connects=1)) == []
    assert desk.asked == [1]
    back = device(phase=Phase.WAITING, connects=2)
    assert desk.step(back) == []
    assert desk.asked == [1, 1]
    assert desk.step(back) == [], "the second is on its way"
    desk.grid.answer("q2", region="eu-1", device="cam-7", nonce=desk.nonce("q2"), samples=60)
    proof: dict[str, Any] = {"nonce": desk.nonce("q2"), "message_id": "q2", "connects": 2}
    assert desk.step(device(phase=Phase.WAITING, **proof)) == [("eu-1/cam-7", 5, 60)]
    assert desk.asked == [1, 1]


def test_two_that_claim_one_node_share_a_query_and_the_right_one_is_believed(desk: Desk) -> None:
    thief, owner = device("aaa"), device("cam-7")
    assert desk.step(thief, owner) == []
    assert list(desk.grid.sent) == ["q1"]
    desk.grid.answer("q1", region="eu-1", device="cam-7", nonce=desk.nonce("q1"), samples=60)
    proof: dict[str, Any] = {"nonce": desk.nonce("q1"), "message_id": "q1"}
    assert desk.step(thief, device("cam-7", **proof)) == [("eu-1/cam-7", 5, 60)]
    assert desk.step(device("aaa", **proof), device("cam-7", **proof)) == [("eu-1/cam-7", 5, 60)]
    assert desk.asked == [1]


def test_a_new_node_after_a_restart_is_asked_anew(desk: Desk) -> None:
    desk.step(device())
    desk.grid.answer("q1", region="eu-1", device="cam-7", nonce=desk.nonce("q1"), samples=60)
    proof: dict[str, Any] = {"nonce": desk.nonce("q1"), "message_id": "q1"}
    assert desk.step(device(**proof)) != []
    assert desk.step(device(node_id=9, **proof)) == []
    assert desk.grid.sent["q2"].metadata.dst_node_id == 9
    assert desk.nonce("q2") != desk.nonce("q1")
    desk.grid.answer("q2", region="eu-1", device="cam-7", nonce=desk.nonce("q2"), samples=61)
    again = device(node_id=9, nonce=desk.nonce("q2"), message_id="q2")
    assert desk.step(again) == [("eu-1/cam-7", 9, 61)]


@pytest.mark.parametrize(
    "change", [{"online": False}, {"state": ExecutionState.QUEUED}, {"state": None}, {"node_id": None}]
)
def test_who_does_not_take_part_is_neither_asked_nor_a_member(desk: Desk, change: dict[str, Any]) -> None:
    assert desk.step(device(**change)) == []
    assert desk.grid.sent == {}
    desk.step(device())
    desk.grid.answer("q1", region="eu-1", device="cam-7", nonce=desk.nonce("q1"), samples=60)
    proof: dict[str, Any] = {"nonce": desk.nonce("q1"), "message_id": "q1"}
    assert len(desk.step(device(**proof))) == 1
    assert desk.step(device(**{**proof, **change})) == []
    assert len(desk.step(device(**proof))) == 1, "it came back, and needs no second query"
    assert desk.asked == [1]


def test_who_comes_later_through_no_fault_is_counted(desk: Desk) -> None:
    desk.step(
        device("waits", None, state=ExecutionState.QUEUED),
        device("fetches", None, phase=Phase.FETCHING),
        device("fetched-last-time", None, state=ExecutionState.REJECTED),
        device("gone", None, phase=Phase.FETCHING, online=False),
        device("connects", None, phase=Phase.CONNECTING),
    )
    assert desk.checkin.queued == 2


def test_members_stand_by_name(desk: Desk) -> None:
    devices = [device(name, node) for name, node in (("zoe", 1), ("amy", 2))]
    desk.step(*devices)
    assert desk.asked == [2]
    proven = []
    for key, (name, node) in zip(("q1", "q2"), (("zoe", 1), ("amy", 2)), strict=True):
        desk.grid.answer(key, region="eu-1", device=name, nonce=desk.nonce(key), samples=node)
        proven.append(device(name, node, nonce=desk.nonce(key), message_id=key))
    assert [name for name, _, _ in desk.step(*proven)] == ["eu-1/amy", "eu-1/zoe"]
