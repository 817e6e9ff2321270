"""A region's answers to the tier above: by its rounds, by its checkpoints, and none where it has trouble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.metadata import Metadata

from regional_gateway.region_app.member import RegionMember
from trellis.errors import Unavailable
from trellis.flower.backchannel import Outcome, RoundRecord, Tally, Uplink
from trellis.flower.checkin import Member
from trellis.flower.exchange import Standing
from trellis.flower.questions import CANCELED, NOT_MY_TASK, TRAINING_FAILED, Membership
from trellis.flower.updates import TALLY
from trellis.tensors import Arrays, pack_arrays, unpack_arrays
from trellis.tier.assembly import Tier
from trellis.tier.checkpoints import Checkpoints
from trellis.tier.round import RoundFailed, Trained
from trellis.tier.strategy_table import STRATEGIES

WHO = Membership("digits", 1, "d", "regional", "eu-1", "gateway")
SAMPLES = {"cam-1": 30, "cam-2": 10}


class Rounds:
    """The region's rounds: each adds 1 to the model, and counts."""

    def __init__(self, fails_in: int | None = None, error: Exception | None = None) -> None:
        self.asked: list[tuple[int, dict[str, bool]]] = []
        self._fails_in, self._error = fails_in, error

    def train(self, number: int, arrays: Arrays, asks: Mapping[str, bool] | None = None) -> Trained:
        self.asked.append((number, dict(asks or {})))
        if number == self._fails_in:
            raise self._error or RuntimeError("killed")
        grown = {name: array + np.float32(1) for name, array in arrays.items()}
        return Trained(grown, {"train_loss": 1.0 / number}, standing(), standby=1)

    def evaluate(self, number: int, arrays: Arrays) -> tuple[dict[str, float], Standing | None]:
        self.asked.append((number, {}))
        return {"eval_loss": float(arrays["w"].sum())}, standing("evaluate")


class Grid:
    traffic = (0, 0)

    def begin_round(self) -> None: ...

    def say(self, standing: object) -> None: ...

    def wait_members(self, after: int, timeout_s: float) -> tuple[int, list[Member]]:
        return 1, [Member(f"eu-1/{name}", n, count) for n, (name, count) in enumerate(SAMPLES.items())]


class Channel:
    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.uplinks: list[Uplink] = []
        self.gone = False

    def record(self, record: RoundRecord) -> None:
        self.records.append(record)

    def uplink(self, news: Uplink) -> None:
        self.uplinks.append(news)

    def flush(self) -> None:
        if self.gone:
            raise Unavailable("the gateway does not answer")


def standing(phase: str = "train") -> Standing:
    outcomes: list[dict[str, Any]] = [
        {"device": name, "outcome": "replied", "samples": count} for name, count in SAMPLES.items()
    ]
    outcomes.append({"device": "cam-3", "outcome": "lost"})
    told = tuple(Outcome.model_validate({"region": "eu-1", "phase": phase, **one}) for one in outcomes)
    return Standing(slots=3, replied=2, failed=0, lost=1, quorum_reached=True, outcomes=told)


class Region:
    """A region's app in `folder`, started as often as a test likes."""

    def __init__(self, folder: Path, *, regional_rounds: int = 3) -> None:
        self.folder, self.regional_rounds = folder, regional_rounds
        self.channel = Channel()
        self.given_up: list[Exception] = []

    def member(self, rounds: Rounds) -> RegionMember:
        # Of the strategy nothing is asked: fedavg has no state.
        made: dict[str, Any] = {"strategy": object(), "grid": Grid(), "rounds": rounds}
        parts: dict[str, Any] = {"channel": self.channel}
        return RegionMember(
            membership=WHO,
            regional_rounds=self.regional_rounds,
            tier=Tier(count=30, entry=STRATEGIES["fedavg"], **made),
            checkpoints=Checkpoints(self.folder),
            give_up=self.given_up.append,
            **parts,
        )


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(tmp_path)


def asked(number: int, *, value: float = 0.0, kind: str = "train", **config: Any) -> Message:
    content = RecordDict(
        {
            "arrays": pack_arrays({"w": np.full(4, value, np.float32)}),
            "config": ConfigRecord({"task": "digits", "round": number, **config}),
        }
    )
    metadata = Metadata(1, f"m{number}", 1, 7, "", "", 0.0, 3600.0, kind)
    return Message(metadata=metadata, content=content)


def weights(reply: Message) -> list[float]:
    return list(unpack_arrays(reply.content.array_records["arrays"])["w"])


def test_a_message_is_answered_by_as_many_rounds_as_the_task_says(region: Region) -> None:
    rounds = Rounds()
    reply = region.member(rounds).answer(asked(2, value=5.0), 7)
    assert [number for number, _ in rounds.asked] == [4, 5, 6]
    assert weights(reply) == [8.0] * 4
    metrics = dict(reply.content.metric_records["metrics"])
    assert metrics["num-examples"] == 40  # of the last round, of those that replied
    assert metrics["train_loss"] == pytest.approx(1 / 6)
    tally = Tally.model_validate(dict(reply.content.config_records[TALLY]))
    assert tally == Tally(selected=3, replied=2, failed=1, standby=1)
    assert [record.round for record in region.channel.records] == [4, 5, 6]


def test_what_was_finished_before_a_crash_is_not_done_again(region: Region) -> None:
    region.member(Rounds(fails_in=3)).answer(asked(1), 7)
    again = Rounds()
    reply = region.member(again).answer(asked(1), 8)
    assert [number for number, _ in again.asked] == [3]
    assert weights(reply) == [3.0] * 4
    # Asked once more, by a centre that was begun anew: answered from the disk.
    idle = Rounds()
    assert weights(region.member(idle).answer(asked(1), 9)) == [3.0] * 4
    assert idle.asked == []


def test_where_no_checkpoint_is_whole_the_question_is_answered_from_its_beginning(region: Region) -> None:
    region.member(Rounds(fails_in=3)).answer(asked(1), 7)
    for path in (region.folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    again = Rounds()
    assert weights(region.member(again).answer(asked(1), 8)) == [3.0] * 4
    assert [number for number, _ in again.asked] == [1, 2, 3]


def test_another_model_is_another_question(region: Region) -> None:
    region.member(Rounds()).answer(asked(1), 7)
    anew = Rounds()
    reply = region.member(anew).answer(asked(1, value=10.0), 7)
    assert [number for number, _ in anew.asked] == [1, 2, 3]
    assert weights(reply) == [13.0] * 4


def test_a_centre_that_has_gone_back_is_followed(region: Region) -> None:
    member = region.member(Rounds())
    for number in (1, 2, 3):
        member.answer(asked(number, value=float(number)), 7)
    back = Rounds()
    member = region.member(back)
    member.answer(asked(2, value=7.0), 7)
    assert [number for number, _ in back.asked] == [4, 5, 6]
    # A kill now must find these rounds, not those of the life before.
    last = Checkpoints(region.folder).latest()
    assert last is not None
    assert (last.round, float(last.arrays["w"][0])) == (6, 10.0)


def test_the_loss_at_the_model_from_above_is_that_of_the_first_round(region: Region) -> None:
    rounds = Rounds()
    reply = region.member(rounds).answer(asked(1, **{"report-initial-loss": True}), 7)
    assert [bool(asks) for _, asks in rounds.asked] == [True, False, False]
    metrics = dict(reply.content.metric_records["metrics"])
    assert metrics["train_loss"] == 1.0
    assert metrics["final_loss"] == pytest.approx(1 / 3)
    assert "initial_loss" not in metrics


def test_an_evaluation_weighs_what_its_devices_have(region: Region) -> None:
    reply = region.member(Rounds()).answer(asked(2, value=2.0, kind="evaluate"), 7)
    assert dict(reply.content.metric_records["metrics"]) == {"eval_loss": 8.0, "num-examples": 40}


def test_a_round_that_cannot_be_is_an_answer(region: Region) -> None:
    failing = Rounds(fails_in=1, error=RoundFailed("round 1: waited 60 s for 2 members, 1 is here"))
    error = region.member(failing).answer(asked(1), 7).error
    assert isinstance(error, Error)
    assert (error.code, error.reason) == (TRAINING_FAILED, "round 1: waited 60 s for 2 members, 1 is here")
    assert region.given_up == []


def test_another_tasks_message_is_refused(region: Region) -> None:
    rounds = Rounds()
    reply = region.member(rounds).answer(asked(1, task="other"), 7)
    assert reply.error.code == NOT_MY_TASK != CANCELED
    assert rounds.asked == []


def test_a_disk_that_fails_is_no_answer(region: Region) -> None:
    """A real one: a file stands where the checkpoints' folder is to be."""
    (region.folder / "checkpoints").write_text("in the way")
    member = region.member(Rounds())
    with pytest.raises(OSError, match="checkpoints"):
        member.answer(asked(1), 7)
    assert len(region.given_up) == 1
    (region.folder / "checkpoints").unlink()
    assert weights(region.member(Rounds()).answer(asked(1), 7)) == [3.0] * 4


def test_a_gateway_that_is_gone_is_no_answer(region: Region) -> None:
    region.channel.gone = True
    with pytest.raises(Unavailable):
        region.member(Rounds()).answer(asked(1), 7)
    assert len(region.given_up) == 1
