"""The descriptor: what it takes, and how it says everything that is wrong with it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from small_descriptor import SMALL

from trellis.descriptor import TaskDescriptor, load, parse_json, parse_mapping
from trellis.errors import DescriptorError

FULL = """
task: mnist-lenet
revision: 3
desired: run
regions: [eu-1, us-1]
server: {address: "10.0.0.5:8000", tls: true}
model: {name: lenet5}
data:
  name: mnist
  shape: [1, 28, 28]
  classes: 10
  min_samples: 100
  normalize: {mean: 0.1307, std: 0.3081}
  instructions: "28×28 digits, one a file"
train: {rounds: 10, local_epochs: 2, batch_size: 32, learning_rate: 5e-2, momentum: 0.9, seed: 42}
strategy: {name: fedadam, params: {eta: 0.1, beta_1: 0.9}}
participants: {minimum: 2, maximum: 100, fraction: 0.5, quorum: 0.8, deadline_s: 90}
aggregation:
  tier: regional
  regional_rounds: 2
  participants: {minimum: 1}
  regions: {us-1: {tier: central}}
evaluate: {on: [server, devices], every: 2}
stop: {metric: accuracy, target: 0.99, patience: 5}
issued_at: 2026-05-01T12:00:00Z
expires_at: 2026-05-08T12:00:00+02:00
"""


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "task.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def faults(change: dict[str, Any], *, drop: tuple[str, ...] = ()) -> list[str]:
    value = {key: part for key, part in (SMALL | change).items() if key not in drop}
    with pytest.raises(DescriptorError) as caught:
        parse_mapping(value)
    with pytest.raises(DescriptorError) as from_json:
        parse_json(json.dumps(value))
    assert [f.field for f in from_json.value.faults] == [f.field for f in caught.value.faults]
    return [str(fault) for fault in caught.value.faults]


def test_every_field_of_the_design_is_taken(tmp_path: Path) -> None:
    task = load(written(tmp_path, FULL))
    assert (task.task, task.revision, task.desired, task.regions) == (
        "mnist-lenet",
        3,
        "run",
        ("eu-1", "us-1"),
    )
    assert (task.server.address, task.server.tls, task.model.name) == ("10.0.0.5:8000", True, "lenet5")
    assert (task.data.shape, task.data.classes, task.data.min_samples) == ((1, 28, 28), 10, 100)
    assert task.data.normalize is not None
    assert (task.data.normalize.mean, task.data.normalize.std) == (0.1307, 0.3081)
    assert task.data.instructions == "28×28 digits, one a file"
    assert task.train.model_dump() == {
        "rounds": 10,
        "local_epochs": 2,
        "local_steps": None,
        "batch_size": 32,
        "learning_rate": 0.05,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "clip_norm": None,
        "seed": 42,
    }
    assert (task.strategy.name, task.strategy.params) == ("fedadam", {"eta": 0.1, "beta_1": 0.9})
    assert (task.participants.fraction, task.participants.quorum, task.participants.deadline_s) == (
        0.5,
        0.8,
        90,
    )
    assert (task.aggregation.regional_rounds, task.tier_of("eu-1"), task.tier_of("us-1")) == (
        2,
        "regional",
        "central",
    )
    assert task.aggregation.participants is not None
    assert (task.evaluate.on, task.evaluate.every) == (("server", "devices"), 2)
    assert task.stop is not None
    assert (task.stop.metric, task.stop.target, task.stop.patience) == ("accuracy", 0.99, 5)
    assert task.issued_at == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert task.expires_at == datetime(2026, 5, 8, 10, tzinfo=UTC)


def test_json_on_disk_is_taken_as_yaml_is(tmp_path: Path) -> None:
    assert load(written(tmp_path, json.dumps(SMALL))) == parse_mapping(SMALL) == parse_json(json.dumps(SMALL))


def test_what_is_left_out_has_the_designs_defaults() -> None:
    task = parse_mapping(SMALL)
    assert (task.revision, task.desired, task.server.tls, task.strategy.name) == (1, "run", True, "fedavg")
    assert (task.participants.minimum, task.participants.maximum, task.participants.quorum) == (2, 100, 0.8)
    assert (task.evaluate.on, task.tier_of("eu-1"), task.stop) == (("devices",), "central", None)
    assert task.expires_at - task.issued_at == timedelta(days=7)


def trained(**work: Any) -> dict[str, Any]:
    return SMALL | {"train": {"rounds": 3, "learning_rate": 0.1, **work}}


def test_local_work_is_counted_in_epochs_or_in_steps_and_in_one_epoch_by_default() -> None:
    counts = [
        (train.local_epochs, train.local_steps)
        for train in (
            parse_mapping(trained(**work)).train for work in ({}, {"local_epochs": 3}, {"local_steps": 60})
        )
    ]
    assert counts == [(1, None), (3, None), (None, 60)]


@pytest.mark.parametrize("work", [{}, {"local_epochs": 3}, {"local_steps": 60}])
def test_the_signed_text_says_how_work_is_counted_in_one_way(work: dict[str, int]) -> None:
    task = parse_mapping(trained(**work))
    said = json.loads(task.to_json())["train"]
    assert {name: said[name] for name in ("local_epochs", "local_steps") if name in said} == (
        work or {"local_epochs": 1}
    )
    assert parse_json(task.to_json()) == task


def test_without_a_window_it_begins_now_and_lasts_a_week() -> None:
    task = parse_mapping({key: value for key, value in SMALL.items() if key != "issued_at"})
    assert abs(task.issued_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert task.expires_at - task.issued_at == timedelta(days=7)


def test_on_is_a_key_and_not_true(tmp_path: Path) -> None:
    task = load(written(tmp_path, json.dumps(SMALL)[:-1] + ", evaluate: {on: [server], every: 1}}"))
    assert task.evaluate.on == ("server",)


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_the_words_of_yaml_1_1_are_no_booleans(tmp_path: Path, word: str) -> None:
    text = json.dumps(SMALL).replace('"127.0.0.1:8000"', f'"127.0.0.1:8000", tls: {word}')
    with pytest.raises(DescriptorError, match=f'server.tls: input should be a valid boolean, got "{word}"'):
        load(written(tmp_path, text))


@pytest.mark.parametrize(("text", "rate"), [("1e-3", 0.001), ("1E2", 100.0), (".5e1", 5.0), ("1.e-2", 0.01)])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str, rate: float) -> None:
    content = json.dumps(SMALL).replace('"learning_rate": 0.1', f'"learning_rate": {text}')
    assert load(written(tmp_path, content)).train.learning_rate == rate


def test_all_faults_are_reported_at_once_each_with_its_field() -> None:
    assert faults(
        {
            "task": "No Name",
            "revision": -1,
            "desired": "maybe",
            "regions": ["eu-1", "central"],
            "server": {"address": "nowhere", "tls": "no", "insecure": True},
            "model": {"name": ""},
            "data": {"name": "digits", "shape": [], "classes": 1, "min_samples": 0, "normalize": {"std": 0}},
            "train": {"rounds": "3", "learning_rate": -0.1, "momentum": 1, "seed": -1},
            "strategy": {"name": "fedavg", "params": {"eta": "big"}},
            "participants": {"minimum": 5, "maximum": 2},
            "evaluate": {"on": ["moon"], "every": -1},
            "stop": {"metric": "f1"},
            "issued_at": "today",
            "zzz": 1,
        },
        drop=("aggregation",),
    ) == [
        r"task: string should match pattern " + "'^[a-z0-9][a-z0-9-]{0,62}$', got \"No Name\"",
        "revision: input should be greater than or equal to 1, got -1",
        "desired: input should be 'run' or 'canceled', got \"maybe\"",
        "regions.1: 'central' is the central server's own name; choose another, got \"central\"",
        "server.address: string should match pattern "
        "'^(\\[[0-9a-fA-F:.]+\\]|[A-Za-z0-9._-]+):[0-9]{1,5}$', got \"nowhere\"",
        'server.tls: input should be a valid boolean, got "no"',
        "server.insecure: is no field of it (remove it, or mind its spelling)",
        'model.name: string should have at least 1 character, got ""',
        "data.shape: tuple should have at least 1 item after validation, not 0, got []",
        "data.classes: input should be greater than or equal to 2, got 1",
        "data.min_samples: input should be greater than or equal to 1, got 0",
        "data.normalize.std: input should be greater than 0, got 0",
        'train.rounds: input should be a valid integer, got "3"',
        "train.learning_rate: input should be greater than 0, got -0.1",
        "train.momentum: input should be less than 1, got 1",
        "train.seed: input should be greater than or equal to 0, got -1",
        'strategy.params.eta: input should be a finite number, got "big"',
        "participants.minimum: must not exceed maximum (2), got 5 (lower it, or raise maximum)",
        "evaluate.on.0: input should be 'server' or 'devices', got \"moon\"",
        "evaluate.every: input should be greater than or equal to 0, got -1",
        "stop.metric: input should be 'accuracy' or 'loss', got \"f1\"",
        'issued_at: input should be a date and time with its zone, as 2026-05-01T12:00:00Z, got "today"',
        "zzz: is no field of it (remove it, or mind its spelling)",
    ]


def test_every_missing_field_is_named() -> None:
    due = ("task", "regions", "server", "model", "data", "train")
    assert faults({}, drop=due) == [f"{name}: is missing" for name in due]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"regions": ["a", "a"]}, 'regions: names a region twice, got ["a", "a"]'),
        ({"evaluate": {"on": ["server", "server"]}}, "evaluate.on: names a place twice"),
        ({"server": {"address": "h:0"}}, 'server.address: the port must be 1 to 65535, got "h:0"'),
        ({"server": {"address": "h:65536"}}, "server.address: the port must be 1 to 65535"),
        (
            {"train": {"rounds": True, "learning_rate": 0.1}},
            "train.rounds: input should be a valid integer, got true",
        ),
        (
            {"train": {"rounds": 1, "learning_rate": 0.1, "local_epochs": 2, "local_steps": 60}},
            "train.local_steps: is 60, and local_epochs is 2: exactly one of them is due (remove one)",
        ),
        (
            {"train": {"rounds": 1, "learning_rate": 0.1, "local_steps": 0}},
            "train.local_steps: input should be greater than or equal to 1, got 0",
        ),
        (
            {"train": {"rounds": 1, "learning_rate": 0.1, "optimizer": "adamw"}},
            "train.optimizer: input should be 'sgd' or 'adam', got \"adamw\"",
        ),
        (
            {"train": {"rounds": 1, "learning_rate": 0.1, "optimizer": "adam", "momentum": 0.9}},
            "train.momentum: is 0.9 with optimizer adam, which has moments of its own (leave momentum out, "
            "or take sgd)",
        ),
        (
            {"train": {"rounds": 1, "learning_rate": 0.1, "weight_decay": -0.1}},
            "train.weight_decay: input should be greater than or equal to 0, got -0.1",
        ),
        (
            {"train": {"rounds": 1, "learning_rate": 0.1, "clip_norm": 0}},
            "train.clip_norm: input should be greater than 0, got 0",
        ),
        ({"train": {"rounds": 1, "learning_rate": float("nan")}}, "train.learning_rate: input should be"),
        ({"train": {"rounds": 1, "learning_rate": float("inf")}}, "train.learning_rate: input should be"),
        (
            {"strategy": {"params": {"eta": float("inf")}}},
            "strategy.params.eta: input should be a finite number",
        ),
        ({"participants": {"quorum": 0}}, "participants.quorum: input should be greater than 0, got 0"),
        (
            {"participants": {"fraction": 1.5}},
            "participants.fraction: input should be less than or equal to 1",
        ),
        ({"issued_at": 1_750_000_000}, "issued_at: input should be a date and time with its zone"),
        ({"issued_at": "1750000000"}, "issued_at: input should be a date and time with its zone"),
        ({"issued_at": "2026-05-01T12:00:00"}, "issued_at: input should have timezone info"),
        ({"issued_at": "0001-01-01T00:00:00+23:00"}, "issued_at: input should be a time between the years"),
        (
            {"stop": {"target": 0.9}, "evaluate": {"on": []}},
            "stop: needs an evaluation, and evaluate.on is empty (give evaluate.on, and evaluate.every of at",
        ),
        ({"stop": {}, "evaluate": {"every": 0}}, "stop: needs an evaluation, and evaluate.every is 0 (give"),
        (
            {"aggregation": {"regions": {"xx": {"tier": "central"}}}},
            "aggregation.regions.xx: is none of the task's regions: eu-1 (remove it, or name it in regions)",
        ),
        (
            {"expires_at": "2026-05-01T12:00:00Z"},
            "expires_at: must be after issued_at (2026-05-01T12:00:00+00:00), got 2026-05-01T12:00:00+00:00 "
            "(give a later time, or leave it out for 7 days)",
        ),
        ({"participant": {}}, "participant: is no field of it (did you mean 'participants'?)"),
        (
            {"server": {"address": "h:1", "adress": "h:2"}},
            "server.adress: is no field of it (did you mean 'address'?)",
        ),
    ],
)
def test_one_fault_is_reported_once(change: dict[str, Any], fault: str) -> None:
    (said,) = faults(change)
    assert said.startswith(fault)


def test_equal_work_is_told_apart_from_its_window() -> None:
    task = parse_mapping(SMALL)
    later = parse_mapping(SMALL | {"issued_at": "2026-06-01T12:00:00Z"})
    assert task.same_work(later)
    assert task != later
    assert not task.same_work(parse_mapping(SMALL | {"revision": 2}))


def test_canceled_is_the_next_revision_of_the_same_task() -> None:
    task = parse_mapping(SMALL)
    canceled = task.canceled()
    assert (canceled.revision, canceled.desired, canceled.task) == (2, "canceled", "t")
    # Issued anew: a task that has run longer than its window can still be called off.
    assert canceled.issued_at <= datetime.now(UTC) < canceled.expires_at
    assert parse_json(canceled.to_json()) == canceled
    assert not task.same_work(canceled)


def test_a_descriptor_cannot_be_changed() -> None:
    task: Any = parse_mapping(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        task.revision = 9
    assert isinstance(task, TaskDescriptor)
