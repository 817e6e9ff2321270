"""The round loop: gather, select, train, aggregate, checkpoint, evaluate, report.

It uses the four public steps of a Flower strategy (`configure_train`, `aggregate_train`,
`configure_evaluate`, `aggregate_evaluate`), because `Strategy.start` can neither stop, nor resume, nor keep
a deadline.

    RoundLoop.run
    ├── Canceled      the task was called off
    ├── Unavailable   the service is gone
    └── TaskFailed    too few devices, or no quorum: the reason is for people
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from central_server.headline import headline
from central_server.rounds.checkpoints import Checkpoint, Checkpoints, restore_strategy, strategy_state
from central_server.rounds.evaluation import ServerData, evaluate, read_model, write_model
from central_server.rounds.selection import select
from central_server.rounds.stopping import advance
from central_server.rounds.strategies import Entry
from models.backends import Backend
from trellis.descriptor import TaskDescriptor
from trellis.errors import TrellisError
from trellis.flower.backchannel import Outcome, RoundRecord, StateReport
from trellis.flower.channel import ServiceChannel
from trellis.flower.checkin import Member
from trellis.flower.exchange import Standing
from trellis.flower.grid import TrellisGrid
from trellis.payloads import Round, RoundPhase, TaskState
from trellis.tensors import Arrays

logger = logging.getLogger(__name__)

_SETTLE_S = 5.0
"""How long the first round waits, once its minimum is here, for devices that are checking in."""
_ATTEMPTS = 3
"""A round below its quorum is tried again with whoever is here, so often."""


class TaskFailed(TrellisError):
    """The task cannot go on; the message is the reason that people are told."""


@dataclass(frozen=True)
class Finished:
    """A task that has succeeded: its final metrics, and why it ended early, if it did."""

    metrics: dict[str, float]
    stopped: str | None


@dataclass(frozen=True)
class Trained:
    """A finished training phase."""

    arrays: Arrays
    metrics: dict[str, float]
    standing: Standing


class RoundLoop:
    """One task's rounds from a fresh start or a checkpoint to the saved model."""

    def __init__(
        self,
        *,
        descriptor: TaskDescriptor,
        strategy: Strategy,
        entry: Entry,
        grid: TrellisGrid,
        channel: ServiceChannel,
        folder: Path,
        backend: Backend,
        data: ServerData | None,
    ) -> None:
        self._task, self._strategy, self._entry = descriptor, strategy, entry
        self._grid, self._channel = grid, channel
        self._backend, self._data = backend, data
        self._checkpoints = Checkpoints(folder)
        self._model_file = folder / "model.safetensors"
        self._rounds = descriptor.train.rounds
        self._settled: float | None = None

    def run(self) -> Finished:
        """Run what is left of the task."""
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            checkpoint = Checkpoint(0, self._backend.initial())
        else:
            restore_strategy(self._strategy, checkpoint.strategy)
            logger.info("going on after round %d", checkpoint.round)
            if checkpoint.record is not None:
                # Whether the service has heard of it before the crash nobody knows; twice does no harm.
                self._channel.record(checkpoint.record)
        while checkpoint.round < self._rounds and checkpoint.progress.reason is None:
            checkpoint = self._round(checkpoint.round + 1, checkpoint)
        return self._finish(checkpoint)

    def _round(self, number: int, before: Checkpoint) -> Checkpoint:
        started = time.monotonic()
        self._grid.begin_round()
        trained = self._train(number, before.arrays)
        progress = before.progress
        metrics, evaluated = dict(trained.metrics), None
        if self._is_evaluated(number):
            found, evaluated = self._evaluate(number, trained.arrays)
            metrics |= found
            # A few devices' word, or a loss in training, decides nothing.
            enough = evaluated is None or evaluated.quorum_reached
            judged = {k: v for k, v in found.items() if enough or k.startswith("server_")}
            progress = advance(progress, self._task.stop, headline(judged), number)
        speaking = headline(metrics)
        bytes_up, bytes_down = self._grid.traffic
        record = RoundRecord(
            round=number,
            loss=speaking.get("loss"),
            accuracy=speaking.get("accuracy"),
            metrics=metrics,
            selected=trained.standing.slots,
            replied=trained.standing.replied,
            failed=trained.standing.failed + trained.standing.lost,
            outcomes=_outcomes(trained.standing, evaluated),
            duration_s=round(time.monotonic() - started, 4),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
        )
        state = strategy_state(self._strategy, self._entry.state)
        after = Checkpoint(number, trained.arrays, state, record, progress)
        # Written before it is acted on: what is reported below has happened.
        self._checkpoints.write(after)
        self._channel.record(record)
        self._grid.say(_done(record, self._rounds, lost=trained.standing.lost))
        return after

    def _train(self, number: int, arrays: Arrays) -> Trained:
        problem = ""
        for attempt in range(1, _ATTEMPTS + 1):
            members = self._gather(number)
            self._channel.report(StateReport(state=TaskState.RUNNING))
            participants = self._task.participants
            chosen = select(members, participants, seed=self._task.train.seed, round_number=number)
            self._grid.show_only(chosen)
            before = strategy_state(self._strategy, self._entry.state)
            messages = self._strategy.configure_train(
                number, _record(arrays), self._config(number), self._grid
            )
            replies = list(self._grid.send_and_receive(messages))
            standing = self._grid.last
            if standing is not None and standing.quorum_reached:
                new, metrics = self._strategy.aggregate_train(number, replies)
                if new is not None:
                    return Trained(_like(new, arrays, number), _floats(metrics), standing)
            restore_strategy(self._strategy, before)
            problem = _shortfall(number, standing, participants.quorum)
            logger.warning("attempt %d of %d: %s", attempt, _ATTEMPTS, problem)
        raise TaskFailed(f"{problem}; tried {_ATTEMPTS} times")

    def _evaluate(self, number: int, arrays: Arrays) -> tuple[dict[str, float], Standing | None]:
        metrics: dict[str, float] = {}
        standing = None
        if "devices" in self._task.evaluate.on:
            self._grid.show_only(self._present())
            if list(self._grid.get_node_ids()):
                messages = self._strategy.configure_evaluate(
                    number, _record(arrays), self._config(number), self._grid
                )
                replies = list(self._grid.send_and_receive(messages))
                standing = self._grid.last
                metrics |= _floats(self._strategy.aggregate_evaluate(number, replies))
        if self._data is not None:
            metrics |= evaluate(self._backend, arrays, self._data)
        return metrics, standing

    def _present(self) -> list[Member]:
        _, members = self._grid.wait_members(-1, 0.0)
        taking_part = self._task.participants.model_copy(update={"fraction": 1.0})
        return select(members, taking_part, seed=self._task.train.seed, round_number=0) if members else []

    def _gather(self, number: int) -> list[Member]:
        """Return who is here once the minimum is; a round never starts below it.

        Raises:
            TaskFailed: It is not reached within the deadline.
        """
        participants = self._task.participants
        deadline, version, said = time.monotonic() + participants.deadline_s, -1, -1
        while True:
            left = deadline - time.monotonic()
            version, members = self._grid.wait_members(version, max(0.0, min(left, 1.0)))
            if len(members) >= participants.minimum:
                # Whoever is on the way is waited for, once: who is in the first round is no matter of
                # milliseconds, and one that never arrives costs no other round anything.
                self._settled = self._settled or time.monotonic() + _SETTLE_S
                if not self._grid.newcomers or time.monotonic() >= self._settled:
                    return members
            elif left <= 0:
                here = ", ".join(member.name for member in members) or "none"
                raise TaskFailed(
                    f"round {number}: waited {participants.deadline_s:g} s for {participants.minimum} "
                    f"devices, {len(members)} are here ({here})"
                )
            if len(members) != said:
                said = len(members)
                if said == 0 or number == 1:
                    self._channel.report(StateReport(state=TaskState.GATHERING))
                self._grid.say(
                    Round(round=number - 1, rounds=self._rounds, phase=RoundPhase.GATHERING, standby=said)
                )

    def _finish(self, last: Checkpoint) -> Finished:
        """Write the model, and return the metrics of the file as it was saved."""
        self._channel.report(StateReport(state=TaskState.FINISHING))
        write_model(self._model_file, last.arrays, self._task, last.round)
        saved = read_model(self._model_file)
        metrics = dict(last.record.metrics) if last.record is not None else {}
        if not self._is_evaluated(last.round):
            self._await_devices(last.round)
            found, _ = self._evaluate(last.round, saved)
            metrics |= found
        elif self._data is not None:
            # The round's evaluation was of these very arrays; what may differ is only the file.
            metrics |= evaluate(self._backend, saved, self._data)
        return Finished(metrics, last.progress.reason)

    def _await_devices(self, number: int) -> None:
        """Wait for the devices of a final evaluation; without them the model is saved all the same."""
        if "devices" in self._task.evaluate.on:
            try:
                self._gather(number)
            except TaskFailed as error:
                logger.warning("the final evaluation goes without: %s", error)

    def _config(self, number: int) -> ConfigRecord:
        return ConfigRecord({"task": self._task.task, "round": number})

    def _is_evaluated(self, number: int) -> bool:
        every = self._task.evaluate.every
        return bool(self._task.evaluate.on) and every > 0 and (number % every == 0 or number == self._rounds)


def _done(record: RoundRecord, rounds: int, *, lost: int) -> Round:
    return Round(
        round=record.round,
        rounds=rounds,
        phase=RoundPhase.DONE,
        selected=record.selected,
        replied=record.replied,
        failed=record.failed - lost,
        lost=lost,
        loss=record.loss,
        metrics=record.metrics,
        duration_s=record.duration_s,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
    )


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _like(record: ArrayRecord, arrays: Arrays, number: int) -> Arrays:
    """Return a strategy's result in the model's own dtypes: FedAdam and others return float64.

    Raises:
        TaskFailed: It holds NaN or infinity, of which no device could go on.
    """
    found = {}
    for name, array in arrays.items():
        new = record[name].numpy()
        if array.dtype.kind in "iu" and new.dtype.kind == "f":
            new = np.rint(new)
        found[name] = new.astype(array.dtype, copy=False)
        if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
            raise TaskFailed(f"round {number}: the strategy's tensor {name!r} holds NaN or infinity")
    return found


def _floats(metrics: MetricRecord | None) -> dict[str, float]:
    found = {} if metrics is None else metrics
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}


def _outcomes(trained: Standing, evaluated: Standing | None) -> tuple[Outcome, ...]:
    return trained.outcomes + (evaluated.outcomes if evaluated is not None else ())


def _shortfall(number: int, standing: Standing | None, quorum: float) -> str:
    if standing is None:
        return f"round {number}: no device was left to train"
    reasons = sorted({outcome.reason for outcome in standing.outcomes if outcome.reason})
    why = f" ({'; '.join(reasons)[:500]})" if reasons else ""
    return (
        f"round {number}: {standing.replied} of {standing.slots} replied, {standing.failed} failed, "
        f"{standing.lost} lost; the quorum is {quorum:g}{why}"
    )
