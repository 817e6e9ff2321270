"""A region as a member of the tier above: it answers that tier's messages with rounds of its own.

A train message is answered by `regional_rounds` rounds over the region's members: the last round's model, the
sum of the examples in it, weighted metrics, and the counts of who took part. Each finished round is a
checkpoint that names the message's digest, so that whoever asks the same again, under whatever ID and after
whatever crash, is answered from there, and only what was not finished is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from trellis.errors import Damaged, PayloadError, TrainingFailed, Unavailable
from trellis.flower.backchannel import Outcome, Tally, Uplink
from trellis.flower.channel import ServiceChannel
from trellis.flower.questions import Membership, Question, answered, nonce_of, question_of, who_answers
from trellis.flower.updates import TALLY, WEIGHT
from trellis.tensors import pack_arrays, unpack_arrays
from trellis.tier.assembly import Tier
from trellis.tier.checkpoints import Checkpoint, Checkpoints
from trellis.tier.finishing import finish_round
from trellis.tier.records import record_of
from trellis.tier.strategy_state import restore_strategy, strategy_state

logger = logging.getLogger(__name__)

_INITIAL = "initial_loss"
_OWN_TROUBLE = (Unavailable, OSError)


class RegionMember:
    """What a region answers.

    Args:
        membership: Who it is to the tier above.
        regional_rounds: Rounds of its own to each round above.
        tier: Its own rounds, and what they are run with.
        channel: Reaches its gateway.
        checkpoints: Where its rounds survive a crash.
        give_up: Is told what ends this run: a full disk, or a gateway that is not there, is no answer to the
            tier above. The message stays in the link's inbox for the next run.
    """

    def __init__(
        self,
        *,
        membership: Membership,
        regional_rounds: int,
        tier: Tier,
        channel: ServiceChannel,
        checkpoints: Checkpoints,
        give_up: Callable[[Exception], None],
    ) -> None:
        self._membership = membership
        self._regional_rounds, self._rounds = regional_rounds, tier.count
        self._strategy, self._entry = tier.strategy, tier.entry
        self._grid, self._tier = tier.grid, tier.rounds
        self._channel, self._checkpoints, self._give_up = channel, checkpoints, give_up
        last = self._latest()
        if last is not None:
            restore_strategy(self._strategy, last.strategy, self._entry.state)
            if last.record is not None:
                channel.record(last.record)  # whether it was heard before a crash nobody knows

    def answer(self, message: Message, node_id: int) -> Message:
        """Return the reply to a message from above; what cannot be done is a Flower error that says why.

        Raises:
            Unavailable, OSError: This run cannot go on; `give_up` has been told.
        """
        handlers: dict[str, Callable[[ConfigRecord], RecordDict]] = {
            "query": lambda config: self._query(config, node_id),
            "train": lambda config: self._train(question_of(message, config, self._membership)),
            "evaluate": lambda config: self._evaluate(question_of(message, config, self._membership)),
        }
        kind = message.metadata.message_type
        handle = handlers.get(kind, lambda _: _no_such(kind))
        try:
            return answered(message, self._membership, handle, passing=_OWN_TROUBLE)
        except _OWN_TROUBLE as error:
            self._give_up(error)
            raise

    def _query(self, config: ConfigRecord, node_id: int) -> RecordDict:
        nonce = nonce_of(config)
        self._channel.uplink(Uplink(event="checked-in", node_id=node_id, nonce=nonce))
        _, members = self._grid.wait_members(-1, 0.0)
        return who_answers(self._membership, nonce, sum(member.samples for member in members))

    def _train(self, question: Question) -> RecordDict:
        self._channel.uplink(Uplink(event="training", round=question.round))
        before = (question.round - 1) * self._regional_rounds
        at = self._taken_up(question, before)
        while at.round < before + self._regional_rounds:
            at = self._round(at, question)
        return _reply(at)

    def _taken_up(self, question: Question, before: int) -> Checkpoint:
        """Return how far this very question was answered already, or its beginning."""
        digest = _digest(question)
        last = self._latest()
        if last is not None and last.question == digest:
            logger.info("round %d: goes on after regional round %d", question.round, last.round)
            return last
        # The tier above may have gone back to an older checkpoint of its own.
        self._checkpoints.drop_from(before + 1)
        return Checkpoint(before, unpack_arrays(question.arrays), question=digest)

    def _latest(self) -> Checkpoint | None:
        try:
            return self._checkpoints.latest()
        except Damaged as error:
            # The model comes from above with each question: what was done of the last one is done again.
            logger.error("%s", error)
            return None

    def _round(self, before: Checkpoint, question: Question) -> Checkpoint:
        number = before.round + 1
        began = time.monotonic()
        self._grid.begin_round()
        first = before.record is None
        wants = {"report-initial-loss": True} if question.report_initial_loss and first else {}
        trained = self._tier.train(number, before.arrays, wants)
        metrics = dict(trained.metrics)
        if question.report_initial_loss:
            # The loss at the model from above is the first round's; the others carry it on.
            metrics[_INITIAL] = (
                metrics["train_loss"] if before.record is None else before.record.metrics[_INITIAL]
            )
        record = record_of(
            number,
            metrics,
            trained.standing,
            None,
            duration_s=time.monotonic() - began,
            traffic=self._grid.traffic,
            standby=trained.standby,
        )
        state = strategy_state(self._strategy, self._entry.state)
        after = Checkpoint(number, trained.arrays, state, record, question=before.question)
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

    def _evaluate(self, question: Question) -> RecordDict:
        self._channel.uplink(Uplink(event="evaluating", round=question.round))
        number = question.round * self._regional_rounds
        metrics, standing = self._tier.evaluate(number, unpack_arrays(question.arrays))
        samples = _samples(standing.outcomes) if standing is not None else 0
        if not samples:
            raise TrainingFailed(f"no member of region {self._membership.region!r} has evaluated the model")
        return RecordDict({"metrics": MetricRecord({**metrics, WEIGHT: samples})})


def _reply(last: Checkpoint) -> RecordDict:
    """Return the answer that the last regional round of a question gives."""
    record = last.record
    if record is None:
        raise ValueError("a question is answered by at least one regional round")
    metrics = {name: value for name, value in record.metrics.items() if name != _INITIAL}
    if _INITIAL in record.metrics:
        metrics |= {"train_loss": record.metrics[_INITIAL], "final_loss": record.metrics["train_loss"]}
    tally = Tally(
        selected=record.selected, replied=record.replied, failed=record.failed, standby=record.standby
    )
    return RecordDict(
        {
            "arrays": pack_arrays(last.arrays),
            "metrics": MetricRecord({**metrics, WEIGHT: _samples(record.outcomes)}),
            TALLY: ConfigRecord(tally.model_dump()),
        }
    )


def _samples(outcomes: Iterable[Outcome]) -> int:
    """Return the examples of all who replied: the weight of what they sent together."""
    return sum(outcome.samples or 0 for outcome in outcomes if outcome.outcome == "replied")


def _digest(question: Question) -> str:
    return hashlib.sha256(json.dumps([question.round, *question.digests]).encode()).hexdigest()


def _no_such(kind: str) -> RecordDict:
    raise PayloadError("Flower message", f"is of type {kind!r}, due is query, train or evaluate")
