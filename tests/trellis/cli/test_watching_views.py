"""A picture drawn for a terminal, and told in lines for a pipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from trellis.cli.watching.narration import narrate, round_line
from trellis.cli.watching.picture import DeviceView, LogLine, Picture, TaskPicture, TierPicture
from trellis.cli.watching.rendering import render
from trellis.payloads import (
    CentralTask,
    Execution,
    ExecutionState,
    Phase,
    Presence,
    Progress,
    Reason,
    Round,
    RoundPhase,
    State,
    TaskState,
    TaskStatus,
)

ONLINE = State(state=Presence.ONLINE, boot_id="b", since=1)
OFFLINE = State(state=Presence.OFFLINE, boot_id="b", since=2)
DONE = Round(
    round=2,
    rounds=10,
    phase=RoundPhase.DONE,
    selected=4,
    replied=3,
    failed=1,
    loss=0.25,
    metrics={"server_accuracy": 0.9125, "train_accuracy": 0.5},
    duration_s=1.25,
)
TRAINING = Execution(state=ExecutionState.IN_PROGRESS, phase=Phase.TRAINING, round=3, samples=359)
REFUSED = Execution(
    state=ExecutionState.REJECTED, reason=Reason(code="data", message="has 12 samples, due are 50")
)
RUNNING = CentralTask(task="digits", revision=1, state=TaskState.RUNNING, since=1, round=3, rounds=10)
PICTURE = Picture(
    server=ONLINE,
    gateways={"eu-1": ONLINE, "us-1": OFFLINE},
    devices={
        ("eu-1", "cam-1"): DeviceView(
            state=ONLINE,
            executions={"digits": TRAINING},
            progress={
                "digits": Progress(
                    round=3, epoch=1, epochs=2, step=5, steps=10, samples=1, eta_s=1, loss=0.75
                )
            },
        ),
        ("us-1", "cam-2"): DeviceView(state=ONLINE, executions={"digits": REFUSED}),
        ("us-1", "cam-3"): DeviceView(state=OFFLINE),
    },
    tasks={
        "digits": TaskPicture(
            central=RUNNING,
            centre=TierPicture(
                Round(round=3, rounds=10, phase=RoundPhase.TRAIN, selected=4, replied=1, standby=2),
                {2: DONE},
            ),
        )
    },
    logs=(LogLine("eu-1", "cam-1", "digits", "WARNING", "disk is nearly full"),),
)


def drawn(picture: Picture, **narrowed: str) -> list[str]:
    console = Console(width=140, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(picture, **narrowed))  # type: ignore[arg-type]
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_drawing_shows_services_task_rounds_and_devices() -> None:
    lines = drawn(PICTURE)
    assert lines[0] == "server online   gateway eu-1 online   gateway us-1 offline"
    assert "task digits  running  round 3 of 10  train  1 of 4 replied  2 standing by" in lines
    assert "    2  0.2500    91.25%   3 of 4       1      1.2" in lines
    (training,) = [line.split() for line in lines if "cam-1 " in line and line.startswith("eu-1")]
    assert [training[0], training[1], *training[3:6], *training[-2:]] == [
        "eu-1",
        "cam-1",
        "in_progress",
        "training",
        "3",
        "0.7500",
        "359",
    ]
    assert any("rejected" in line and "has 12 samples, due are 50" in line for line in lines)
    assert any(line.startswith("us-1") and "cam-3" in line and "offline" in line for line in lines)
    assert "warning eu-1/cam-1: disk is nearly full" in lines


@pytest.mark.parametrize(
    ("state", "colour"), [(TaskState.SUCCEEDED, "32"), (TaskState.FAILED, "31")], ids=["early", "failed"]
)
def test_a_task_that_stopped_early_is_drawn_as_a_success_with_its_reason(
    state: TaskState, colour: str
) -> None:
    reason = Reason(code="stopped", message="accuracy has not grown for 3 rounds")
    central = RUNNING.model_copy(update={"state": state, "reason": reason})
    console = Console(width=140, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(render(Picture(tasks={"digits": TaskPicture(central=central)})))
    assert f"\x1b[{colour}m  accuracy has not grown for 3 rounds\x1b[0m" in captured.get()


def test_the_drawing_can_be_narrowed_to_a_region_and_a_task() -> None:
    lines = drawn(PICTURE, region="us-1", task="other")
    assert lines[0] == "server online   gateway us-1 offline"
    assert not any("digits" in line or "eu-1" in line for line in lines)


def regional(**executions: Execution) -> Picture:
    """The country above its two sites, and a region that relays, of which there is a copied round."""
    rounds = Round(round=5, rounds=20, phase=RoundPhase.TRAIN, selected=2, replied=1, loss=0.5)
    tiers = {
        region.replace("_", "-"): TierPicture(rounds, {4: DONE}, one) for region, one in executions.items()
    }
    below = ONLINE.model_copy(update={"parent": "country"})
    return Picture(
        gateways={"country": ONLINE, "site-1": below, "site-2": below, "far": ONLINE},
        tasks={"digits": TaskPicture(central=RUNNING, tiers={**tiers, "far": TierPicture(rounds)})},
    )


def test_regions_that_aggregate_are_drawn_as_a_tree_below_the_centre() -> None:
    failed = TRAINING.model_copy(update={"reason": Reason(code="training", message="1 of 2 replied")})
    lines = drawn(regional(country=TRAINING, site_1=failed, site_2=TRAINING), task="digits")
    start = lines.index("centre")
    assert lines[start : start + 4] == [
        "centre",
        "└── country  training  round 5 of 20  train  1 of 2 replied  loss 0.5000",
        "    ├── site-1  training  round 5 of 20  train  1 of 2 replied  loss 0.5000  1 of 2 replied",
        "    └── site-2  training  round 5 of 20  train  1 of 2 replied  loss 0.5000",
    ]
    assert not any("far" in line for line in lines[start:])


def test_gateways_that_name_each_other_as_parents_are_drawn_all_the_same() -> None:
    picture = regional(site_1=TRAINING, site_2=TRAINING)
    loop = {name: ONLINE.model_copy(update={"parent": other}) for name, other in LOOP.items()}
    lines = drawn(replace(picture, gateways=loop))
    assert sum("train  1 of 2" in line for line in lines) == 2


LOOP = {"site-1": "site-2", "site-2": "site-1"}


def test_a_regions_rounds_are_told_and_copies_are_not() -> None:
    lines = narrate(Picture(), regional(country=TRAINING))
    assert [line for line in lines if "round" in line] == [f"digits: country: {round_line(DONE)}"]


def test_an_empty_picture_can_be_drawn() -> None:
    assert drawn(Picture()) == ["server unknown"]


def test_more_devices_than_fit_are_counted() -> None:
    many = Picture(devices={("eu-1", f"cam-{n}"): DeviceView(state=ONLINE) for n in range(50)})
    assert drawn(many)[-1] == "… and 10 more devices"


def test_the_first_picture_is_told_whole() -> None:
    assert narrate(Picture(), PICTURE) == [
        "server is online",
        "gateway eu-1 is online",
        "gateway us-1 is offline",
        "device eu-1/cam-1 is online",
        "device us-1/cam-2 is online",
        "device us-1/cam-2 does not take part: has 12 samples, due are 50",
        "device us-1/cam-3 is offline",
        "digits: round 2 of 10: loss 0.2500, accuracy 91.25%, 3 of 4 replied, 1 failed, 1.2 s",
        "digits: running",
        "warning eu-1/cam-1: disk is nearly full",
    ]


def test_the_same_picture_again_is_not_told() -> None:
    assert narrate(PICTURE, PICTURE) == []


def test_a_refusal_by_a_gateway_is_told() -> None:
    status = TaskStatus(
        task="digits",
        revision=1,
        desired="run",
        verdict=Reason(code="untrusted", message="signed by a stranger"),
    )
    after = Picture(tasks={"digits": TaskPicture(statuses={"eu-1": status})})
    assert narrate(Picture(), after) == ["digits: gateway eu-1 says: signed by a stranger"]


def test_another_task_is_not_told_when_one_was_asked_for() -> None:
    assert [
        line for line in narrate(Picture(), PICTURE, task="other") if "digits" in line or "samples" in line
    ] == []


def test_a_round_without_evaluation_has_no_accuracy() -> None:
    bare = Round(round=1, rounds=2, phase=RoundPhase.DONE, selected=2, replied=2, lost=1)
    assert round_line(bare) == "round 1 of 2: 2 of 2 replied, 1 lost"
