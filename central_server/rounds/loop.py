"""The round loop: train, evaluate, checkpoint, report, round after round, to the saved model.

RoundLoop.run
├── Canceled      the task was called off
├── Unavailable   the service is gone
└── RoundFailed   too few devices, or no quorum: the reason is for people
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from central_server.rounds.evaluation import ServerData, evaluate, read_model, write_model
from models.backends import DefiningBackend
from trellis.descriptor import TaskDescriptor
from trellis.flower.backchannel import StateReport
from trellis.flower.channel import ServiceChannel
from trellis.flower.exchange import Standing
from trellis.payloads import TaskState
from trellis.tensors import Arrays
from trellis.tier.assembly import Tier
from trellis.tier.checkpoints import Checkpoint, Checkpoints
from trellis.tier.finishing import finish_round
from trellis.tier.headline import headline
from trellis.tier.records import record_of
from trellis.tier.round import RoundFailed
from trellis.tier.stopping import advance
from trellis.tier.strategy_state import restore_strategy, strategy_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A task that has succeeded: its final metrics, and why it ended early, if it did."""

    metrics: dict[str, float]
    stopped: str | None


class RoundLoop:
    """One task's rounds from a fresh start or a checkpoint to the saved model."""

    def __init__(
        self,
        *,
        descriptor: TaskDescriptor,
        tier: Tier,
        channel: ServiceChannel,
        folder: Path,
        backend: Callable[[], DefiningBackend],
        data: ServerData | None,
    ) -> None:
        self._task, self._channel = descriptor, channel
        self._strategy, self._entry = tier.strategy, tier.entry
        self._grid, self._tier = tier.grid, tier.rounds
        self._backend, self._data = backend, data
        self._checkpoints = Checkpoints(folder)
        self._model_file = folder / "model.safetensors"
        self._rounds = tier.count

    def run(self) -> Finished:
        """Run what is left of the task."""
        checkpoint = self._checkpoints.latest()
        if checkpoint is None:
            checkpoint = Checkpoint(0, self._backend().initial())
        else:
            restore_strategy(self._strategy, checkpoint.strategy, self._entry.state)
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
        trained = self._tier.train(number, before.arrays)
        progress = before.progress
        metrics, evaluated = dict(trained.metrics), None
        if self._is_evaluated(number):
            found, evaluated = self._evaluate(number, trained.arrays)
            metrics |= found
            # A few devices' word, or a loss in training, decides nothing.
            enough = evaluated is None or evaluated.quorum_reached
            judged = {k: v for k, v in found.items() if enough or k.startswith("server_")}
            progress = advance(progress, self._task.stop, headline(judged), number)
        record = record_of(
            number,
            metrics,
            trained.standing,
            evaluated,
            duration_s=time.monotonic() - started,
            traffic=self._grid.traffic,
            standby=trained.standby,
        )
        state = strategy_state(self._strategy, self._entry.state)
        after = Checkpoint(number, trained.arrays, state, record, progress)
        finish_round(
            after,
            record,
            rounds=self._rounds,
            lost=trained.standing.lost,
            checkpoints=self._checkpoints,
            channel=self._channel,
            grid=self._grid,
        )
        return after

    def _evaluate(self, number: int, arrays: Arrays) -> tuple[dict[str, float], Standing | None]:
        metrics: dict[str, float] = {}
        standing = None
        if "devices" in self._task.evaluate.on:
            metrics, standing = self._tier.evaluate(number, arrays)
        if self._data is not None:
            metrics |= evaluate(self._backend(), arrays, self._data)
        return metrics, standing

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
            metrics |= evaluate(self._backend(), saved, self._data)
        return Finished(metrics, last.progress.reason)

    def _await_devices(self, number: int) -> None:
        """Wait for the devices of a final evaluation; without them the model is saved all the same."""
        if "devices" in self._task.evaluate.on:
            try:
                self._tier.gather(number)
            except RoundFailed as error:
                logger.warning("the final evaluation goes without: %s", error)

    def _is_evaluated(self, number: int) -> bool:
        every = self._task.evaluate.every
        return bool(self._task.evaluate.on) and every > 0 and (number % every == 0 or number == self._rounds)
