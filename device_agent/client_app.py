"""The device's Flower ClientApp: query, train and evaluate, around a `Trainer`.

It knows neither the link nor MQTT, so that it also runs under the stock `flower-supernode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from device_agent.reporting import HERE_ONLY
from device_agent.trainer import Request, Trainer
from device_agent.turns import Turns
from models.backends import StepReport
from trellis.errors import DiskFailed
from trellis.flower.answers import Answer, AnswerKey
from trellis.flower.questions import (
    Membership,
    Question,
    answered,
    nonce_of,
    question_of,
    stored,
    who_answers,
)
from trellis.payloads import Phase
from trellis.tensors import pack_arrays, unpack_arrays

logger = logging.getLogger(__name__)


class Answers(Protocol):
    """Answers that were given before; the journal keeps them."""

    def answer(self, key: AnswerKey) -> Answer | None: ...

    def write_answer(self, key: AnswerKey, answer: Answer) -> None: ...


class Observer(Protocol):
    """Hears what the ClientApp does; a call has been told to the world when it returns."""

    def checked_in(self, node_id: int, nonce: str) -> None: ...

    def asked(self) -> None: ...

    def working(self, phase: Phase, round_number: int) -> None: ...

    def step(self, round_number: int, report: StepReport) -> None: ...


def build_client_app(
    membership: Membership,
    trainer: Trainer,
    *,
    answers: Answers,
    observer: Observer,
    turns: Turns,
    should_stop: Callable[[], bool],
) -> ClientApp:
    """Return the ClientApp of one task. What it cannot do it answers with a Flower error."""
    handlers = _Handlers(membership, trainer, answers, observer, turns, should_stop)
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return answered(message, membership, lambda config: handlers.query(config, context.node_id))

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return answered(message, membership, lambda config: handlers.train(config, message))

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        return answered(message, membership, lambda config: handlers.evaluate(config, message))

    return app


@dataclass(frozen=True)
class _Handlers:
    membership: Membership
    trainer: Trainer
    answers: Answers
    observer: Observer
    turns: Turns
    should_stop: Callable[[], bool]

    def query(self, config: ConfigRecord, node_id: int) -> RecordDict:
        nonce = nonce_of(config)
        self.observer.checked_in(node_id, nonce)
        return who_answers(self.membership, nonce, self.trainer.samples)

    def train(self, config: ConfigRecord, message: Message) -> RecordDict:
        question = question_of(message, config, self.membership)
        key = self._key("train", question)
        if (known := self.answers.answer(key)) is not None:
            logger.info("round %d was trained before: answered from the journal", question.round)
            return _content(known)
        with self.turns.turn(self.should_stop, self.observer.asked):
            self.observer.working(Phase.TRAINING, question.round)
            trained = self.trainer.train(
                unpack_arrays(question.arrays),
                Request(question.round, question.proximal_mu, question.report_initial_loss),
                on_step=lambda report: self.observer.step(question.round, report),
                should_stop=self.should_stop,
            )
        answer = Answer(trained.metrics, stored(pack_arrays(trained.arrays)))
        self._keep(key, answer)
        self._log(
            "round %d: trained on %d samples in %.1f s, loss %.4f",
            question.round,
            trained.metrics["num-examples"],
            trained.metrics["duration_s"],
            trained.metrics["train_loss"],
        )
        return _content(answer)

    def evaluate(self, config: ConfigRecord, message: Message) -> RecordDict:
        question = question_of(message, config, self.membership)
        key = self._key("evaluate", question)
        if (known := self.answers.answer(key)) is not None:
            logger.info("round %d was evaluated before: answered from the journal", question.round)
            return _content(known)
        with self.turns.turn(self.should_stop, self.observer.asked):
            self.observer.working(Phase.EVALUATING, question.round)
            metrics = self.trainer.evaluate(unpack_arrays(question.arrays), should_stop=self.should_stop)
        answer = Answer(metrics)
        self._keep(key, answer)
        self._log(
            "round %d: evaluated, loss %.4f, accuracy %.4f",
            question.round,
            metrics["eval_loss"],
            metrics["eval_accuracy"],
        )
        return _content(answer)

    def _keep(self, key: AnswerKey, answer: Answer) -> None:
        """Journal an answer before it is given: a power cut from here on costs an upload, not the work."""
        try:
            self.answers.write_answer(key, answer)
        except DiskFailed as error:
            # The same question gives the same answer again: what is lost is time, and only after a crash.
            logger.warning("round %d: its answer goes out unjournaled: %s", key.round, error)

    def _log(self, line: str, *values: object) -> None:
        """Log what every round brings; from a region that averages it does not go up to the centre."""
        logger.info(line, *values, extra={HERE_ONLY: self.membership.tier == "regional"})

    def _key(self, kind: str, question: Question) -> AnswerKey:
        arrays, config = question.digests
        return AnswerKey(
            task=self.membership.task,
            tier=self.membership.tier,
            kind=kind,
            round=question.round,
            arrays=arrays,
            config=config,
        )


def _content(answer: Answer) -> RecordDict:
    content = RecordDict({"metrics": MetricRecord(dict(answer.metrics))})
    if answer.arrays:
        content["arrays"] = ArrayRecord(
            {a.name: Array(dtype=a.dtype, shape=a.shape, stype=a.stype, data=a.data) for a in answer.arrays}
        )
    return content
