"""The rules of a phase: who fills a slot, when it ends, and what became of everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from flwr.app import RecordDict

from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.exchange import Exchange, Flight, Slot
from trellis.flower.updates import Update
from trellis.payloads import ExecutionState, Reason


def view(*present: int, away: tuple[int, ...] = (), uploaded: dict[int, str] | None = None) -> FleetView:
    """A fleet whose device `dN` has node N."""
    devices = [
        FleetDevice(
            region="eu-1",
            device=f"d{node}",
            online=node not in away,
            state=ExecutionState.IN_PROGRESS,
            node_id=node,
            message_id=(uploaded or {}).get(node),
        )
        for node in (*present, *away)
    ]
    return FleetView(version=1, devices=tuple(devices))


def exchange(slots: int, quorum: float = 0.8) -> Exchange:
    """A phase whose message `mN` went to node N."""
    phase = Exchange("train", quorum)
    for node in range(1, slots + 1):
        slot = Slot(RecordDict(), "train")
        phase.add(slot)
        phase.sent(slot, f"m{node}", Flight(f"eu-1/d{node}", node))
    return phase


def update(samples: int = 10, loss: float = 0.5) -> Update:
    return Update({}, {"train_loss": loss}, {}, samples, 0)


def outcomes(phase: Exchange, seen: FleetView) -> dict[str, str]:
    return {outcome.device: outcome.outcome for outcome in phase.close(seen).outcomes}


def test_it_is_complete_once_all_have_replied() -> None:
    phase, fleet = exchange(3), view(1, 2, 3)
    for node in (1, 2, 3):
        assert not phase.is_complete(fleet)
        assert phase.fill(f"m{node}", update(node, node / 2))
    assert phase.is_complete(fleet)
    standing = phase.close(fleet)
    assert (standing.slots, standing.replied, standing.failed, standing.lost) == (3, 3, 0, 0)
    assert standing.quorum_reached
    assert [(o.region, o.device, o.outcome, o.samples, o.loss) for o in standing.outcomes] == [
        ("eu-1", "d1", "replied", 1, 0.5),
        ("eu-1", "d2", "replied", 2, 1.0),
        ("eu-1", "d3", "replied", 3, 1.5),
    ]


def test_a_lost_device_is_not_waited_for_once_the_quorum_is_reached() -> None:
    phase = exchange(5)  # 0.8 of 5: 4
    for node in (1, 2, 3):
        phase.fill(f"m{node}", update())
    assert not phase.is_complete(view(1, 2, 3, 4, away=(5,)))
    phase.fill("m4", update())
    assert not phase.is_complete(view(1, 2, 3, 4, 5))
    gone = view(1, 2, 3, 4, away=(5,))
    assert phase.is_complete(gone)
    assert phase.close(gone).lost == 1
    assert outcomes(phase, gone)["d5"] == "lost"


def test_below_the_quorum_a_lost_device_is_waited_for() -> None:
    phase = exchange(2, quorum=1.0)
    phase.fill("m1", update())
    gone = view(1, away=(2,))
    assert not phase.is_complete(gone)
    standing = phase.close(gone)
    assert (standing.replied, standing.lost, standing.quorum_reached) == (1, 1, False)


def test_a_lost_devices_slot_is_vacant_until_its_message_is_given_to_another() -> None:
    phase, gone = exchange(2, quorum=1.0), view(1, 9, away=(2,))
    (vacant,) = phase.vacant(gone)
    assert list(vacant.flights) == ["m2"]
    phase.sent(vacant, "m9", Flight("eu-1/d9", 9))
    assert phase.vacant(gone) == []
    assert phase.busy_nodes() == {1, 2, 9}
    phase.fill("m1", update())
    assert not phase.is_complete(gone)
    assert phase.fill("m9", update())
    assert phase.is_complete(gone)
    standing = phase.close(gone)
    assert (standing.slots, standing.replied, standing.lost, standing.quorum_reached) == (2, 2, 1, True)


def test_original_and_replacement_fill_one_slot_once() -> None:
    phase, gone = exchange(1), view(9, away=(1,))
    phase.sent(phase.vacant(gone)[0], "m9", Flight("eu-1/d9", 9))
    assert set(phase.awaited()) == {"m1", "m9"}
    assert phase.fill("m1", update(10))
    assert not phase.fill("m9", update(20))
    assert not phase.fill("m1", update(10))
    assert phase.awaited() == {}
    standing = phase.close(view(1, 9))
    assert (standing.slots, standing.replied) == (1, 1)
    assert [outcome.samples for outcome in standing.outcomes] == [10, None]
    assert outcomes(phase, view(1, 9)) == {"d1": "replied", "d9": "superseded"}
    assert outcomes(phase, view(1, away=(9,))) == {"d1": "replied", "d9": "lost"}


def test_a_failed_slot_is_vacant_and_ends_the_phase_if_nobody_stands_by() -> None:
    phase, fleet = exchange(2, quorum=1.0), view(1, 2)
    phase.fill("m1", update())
    phase.fail("m2", "loss is NaN")
    assert [list(slot.flights) for slot in phase.vacant(fleet)] == [["m2"]]
    assert phase.awaited() == {}
    assert phase.is_complete(fleet)
    standing = phase.close(fleet)
    assert (standing.replied, standing.failed, standing.quorum_reached) == (1, 1, False)
    assert standing.outcomes[1].reason == "loss is NaN"


def test_a_failed_device_that_is_replaced_counts_as_failed_beside_the_reply() -> None:
    phase, fleet = exchange(1), view(1, 9)
    phase.fail("m1", "disk full")
    phase.sent(phase.vacant(fleet)[0], "m9", Flight("eu-1/d9", 9))
    assert phase.fill("m9", update())
    assert outcomes(phase, fleet) == {"d1": "failed", "d9": "replied"}
    phase.fail("m9", "too late to fail")
    assert outcomes(phase, fleet)["d9"] == "replied"


def test_who_is_here_but_silent_at_the_deadline_is_late() -> None:
    phase, fleet = exchange(2), view(1, 2)
    phase.fill("m1", update())
    assert not phase.is_complete(fleet)
    assert outcomes(phase, fleet) == {"d1": "replied", "d2": "late"}


def test_uploads_that_are_announced_are_pulled_if_they_are_awaited() -> None:
    phase = exchange(3)
    phase.fill("m1", update())
    fleet = view(1, 2, 3, uploaded={1: "m1", 2: "m2", 3: "of another round"})
    assert phase.uploaded(fleet) == ["m2"]
    # Uploaded, then gone: it counts.
    assert phase.uploaded(view(1, 3, away=(2,), uploaded={2: "m2"})) == ["m2"]


def test_a_stranger_changes_nothing() -> None:
    phase = exchange(1)
    assert not phase.fill("nobody asked", update())
    phase.fail("nobody asked", "?")
    assert phase.replied == 0
    assert not Exchange("train", 0.8).quorum_reached


def rejected(node: int, reason: Reason | None, *, uploaded: str | None = None) -> FleetDevice:
    return FleetDevice(
        region="eu-1",
        device=f"d{node}",
        online=True,
        state=ExecutionState.REJECTED,
        node_id=node,
        message_id=uploaded,
        reason=reason,
    )


def test_a_device_that_ended_the_task_by_itself_is_not_waited_for() -> None:
    phase = exchange(2, quorum=1.0)
    phase.fill("m1", update())
    full = rejected(2, Reason(code="disk", message="its disk is full"))
    seen = FleetView(version=1, devices=(*view(1).devices, full))
    assert not phase.is_complete(seen)
    phase.give_up(seen)
    assert phase.is_complete(seen)
    (_, second) = phase.close(seen).outcomes
    assert (second.outcome, second.reason) == ("failed", "its disk is full")


def test_what_was_uploaded_before_the_device_ended_still_counts() -> None:
    phase = exchange(1)
    seen = FleetView(version=1, devices=(rejected(1, None, uploaded="m1"),))
    phase.give_up(seen)
    assert phase.uploaded(seen) == ["m1"]
    assert phase.fill("m1", update())


def test_a_phase_is_deserted_while_all_that_could_reply_are_away() -> None:
    phase = exchange(3)
    assert not phase.is_deserted(view(1, 2, away=(3,)))
    assert phase.lost(view(1, 2, away=(3,))) == 1
    phase.fill("m1", update())
    assert phase.is_deserted(view(1, away=(2, 3)))
    phase.fail("m2", "broke")
    phase.fail("m3", "broke")
    assert not phase.is_deserted(view(1, away=(2, 3))), "nothing is waited for"


class Counted(tuple[FleetDevice, ...]):
    """Devices that count how often they are gone through."""

    def __new__(cls, devices: Iterable[FleetDevice]) -> Counted:
        return super().__new__(cls, devices)

    def __init__(self, devices: Iterable[FleetDevice]) -> None:
        self.looks = 0

    def __iter__(self) -> Iterator[FleetDevice]:
        self.looks += 1
        return super().__iter__()


def test_a_question_goes_through_the_fleet_once_however_many_slots_there_are() -> None:
    phase, seen = exchange(50), view(*range(1, 50), away=(50,))
    questions: tuple[Callable[[FleetView], object], ...] = (
        phase.uploaded,
        phase.give_up,
        phase.vacant,
        phase.undelivered,
        phase.is_complete,
        phase.lost,
        phase.is_deserted,
        phase.close,
    )
    for question in questions:
        devices = Counted(seen.devices)
        question(FleetView.model_construct(version=1, devices=devices))
        assert devices.looks <= 1, question
