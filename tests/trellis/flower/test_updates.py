"""What a reply must be before it is averaged in, and what its refusal says."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from trellis.errors import TensorError, TrainingFailed
from trellis.flower.packing import packed
from trellis.flower.updates import read_update, sent_tensors
from trellis.tensors import STYPE, Arrays, pack_arrays

MODEL: Arrays = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}
GOOD: Arrays = {"w": np.ones((2, 2), np.float32), "b": np.full(2, 0.5, np.float32)}
NUMBERS: dict[str, float] = {"num-examples": 60, "train_loss": 0.25, "accuracy": 0.5}


def asked(message_type: str = "train") -> Message:
    content = RecordDict({"arrays": pack_arrays(MODEL)})
    return Message(content, 7, message_type)


def reply(
    arrays: Arrays | None = GOOD,
    metrics: dict[str, float] | None = NUMBERS,
    *,
    key: str = "arrays",
    to: str = "train",
) -> Message:
    content = RecordDict()
    if arrays is not None:
        content[key] = pack_arrays(arrays)
    if metrics is not None:
        content["metrics"] = MetricRecord(dict(metrics))
    return Message(content, reply_to=asked(to))


SENT = sent_tensors(asked().content)


def test_a_good_update_is_read() -> None:
    update = read_update(reply(), SENT, trained=True)
    assert update.records["arrays"]["w"].tolist() == [[1, 1], [1, 1]]
    assert (update.samples, update.loss) == (60, 0.25)
    assert update.payload_bytes == len(pack_arrays(GOOD)["packed"].data)


def test_an_evaluation_needs_no_tensors() -> None:
    update = read_update(
        reply(None, {"num-examples": 5, "eval_loss": 2.0}, to="evaluate"), SENT, trained=False
    )
    assert (update.records, update.samples, update.loss, update.payload_bytes) == ({}, 5, 2.0, 0)


def test_a_devices_error_arrives_as_that_error() -> None:
    for error, said in ((Error(1, "loss is NaN at step 3"), "loss is NaN at step 3"), (Error(5), "error 5")):
        with pytest.raises(TrainingFailed, match=said):
            read_update(Message(error, reply_to=asked()), SENT, trained=True)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (reply({"w": GOOD["w"]}), "update: tensor 'b' is missing"),
        (reply(GOOD | {"x": GOOD["b"]}), "update: tensor 'x' is not in the round's model"),
        (
            reply(GOOD | {"b": np.zeros(3, np.float32)}),
            "tensor 'b' has shape (3,), the round's model has (2,)",
        ),
        (reply(GOOD | {"b": np.zeros(2)}), "tensor 'b' has dtype float64, the round's model has float32"),
        (reply(GOOD | {"b": np.array([np.nan, 0], np.float32)}), "tensor 'b' holds NaN or infinity"),
        (reply(GOOD | {"b": np.array([np.inf, 0], np.float32)}), "tensor 'b' holds NaN or infinity"),
        (reply(key="other"), "holds a record 'other' that the round's message has not"),
        (reply(None), "lacks the records ['arrays'], came are []"),
        (reply(metrics=None), "holds 0 metric records, due is one"),
        (reply(metrics={}), "has 'num-examples' None, due is a whole number from 1 to 9007199254740992"),
        (reply(metrics={"num-examples": 0}), "has 'num-examples' 0, due is"),
        (reply(metrics={"num-examples": -3}), "has 'num-examples' -3, due is"),
        (reply(metrics={"num-examples": 1e20}), "has 'num-examples' 1e+20, due is"),
        (reply(metrics={"num-examples": 2**60}), "has 'num-examples' 1152921504606846976, due is"),
        (reply(metrics={"num-examples": 1.5}), "has 'num-examples' 1.5, due is"),
        (
            reply(metrics=NUMBERS | {"num-examples": float("inf")}),
            "metrics that are not finite: num-examples",
        ),
        (
            reply(metrics=NUMBERS | {"a": float("nan"), "b": float("inf")}),
            "metrics that are not finite: a, b",
        ),
        (
            reply(metrics=NUMBERS | {"train_accuracy": 1e304, "accuracy": -0.5}),
            "has shares that are not between 0 and 1: accuracy -0.5, train_accuracy 1e+304",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_said(message: Message, said: str) -> None:
    with pytest.raises(TensorError) as caught:
        read_update(message, SENT, trained=True)
    assert said in str(caught.value)


def test_a_share_that_rounding_took_past_its_end_is_taken() -> None:
    for share in (0.0, 1.0, 1.0000000000000002, -1e-9):
        assert read_update(reply(metrics=NUMBERS | {"eval_accuracy": share}), SENT, trained=True)


def test_two_metric_records_are_refused() -> None:
    message = reply()
    message.content["more"] = MetricRecord({"num-examples": 1})
    with pytest.raises(TensorError, match="holds 2 metric records, due is one"):
        read_update(message, SENT, trained=True)


def test_a_record_that_is_not_packed_or_is_torn_is_refused() -> None:
    plain = reply(None)
    plain.content["arrays"] = ArrayRecord({"w": Array(np.zeros(2))})
    with pytest.raises(TensorError, match="holds a record 'arrays' that is not packed"):
        read_update(plain, SENT, trained=True)
    torn = reply(None)
    torn.content["arrays"] = ArrayRecord(
        {"packed": Array(dtype="uint8", shape=(3,), stype=STYPE, data=b"abc")}
    )
    with pytest.raises(TensorError, match="packed tensors: have 3 bytes"):
        read_update(torn, SENT, trained=True)


def test_messages_that_share_a_content_share_it_packed() -> None:
    content = RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in MODEL.items()})})
    first, second, third = packed(
        [Message(content, 1, "train"), Message(content, 2, "train"), asked()], task="t"
    )
    assert first.content is second.content
    assert first.content is not third.content
    assert (first.metadata.dst_node_id, second.metadata.dst_node_id) == (1, 2)
    assert {k: v.tolist() for k, v in sent_tensors(first.content)["arrays"].items()} == {
        "w": [[0, 0], [0, 0]],
        "b": [0, 0],
    }


def test_a_device_is_told_task_and_round_where_a_strategy_tells_the_round_alone() -> None:
    config = ConfigRecord({"server-round": 3, "proximal-mu": 0.1})
    (message,) = packed([Message(RecordDict({"config": config}), 1, "train")], task="t")
    assert dict(message.content["config"]) == {
        "task": "t",
        "round": 3,
        "server-round": 3,
        "proximal-mu": 0.1,
    }
    assert dict(config) == {"server-round": 3, "proximal-mu": 0.1}, "the caller's own record stays as it was"
    (bare,) = packed([Message(RecordDict({}), 1, "train")], task="t")
    assert dict(bare.content["config"]) == {"task": "t", "round": 0}


def test_a_reply_to_a_train_message_owes_tensors_whatever_it_calls_itself() -> None:
    with pytest.raises(TensorError, match="lacks the records"):
        read_update(reply(None, to="evaluate"), SENT, trained=True)


def test_an_error_of_many_lines_and_escapes_becomes_one_short_line() -> None:
    reason = "first\nsecond \x1b[2J" + "x" * 10_000
    with pytest.raises(TrainingFailed) as caught:
        read_update(Message(Error(1, reason), reply_to=asked()), SENT, trained=True)
    assert str(caught.value).startswith("first second [2Jxxx")
    assert len(str(caught.value)) == 2000
