"""The device's Flower ClientApp: query, train and evaluate, around a `Trainer`.

It knows neither the link nor MQTT, so that it also runs under the stock `flower-supernode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from device_agent.trainer import Request, Trainer
from models.backends import StepReport
from trellis.errors import Canceled, PayloadError, TrellisError
from trellis.flower.answers import Answer, AnswerKey, StoredArray, digest_of_arrays, digest_of_config
from trellis.payloads import Phase
from trellis.tensors import pack_arrays, unpack_arrays

logger = logging.getLogger(__name__)

TRAINING_FAILED = 100
NOT_MY_TASK = 101
CANCELED = 102


@dataclass(frozen=True)
class Membership:
    """Who answers, and for which task: the descriptor's digest names it beyond doubt."""

    task: str
    revision: int
    digest: str
    tier: str
    region: str
    device: str


class Answers(Protocol):
    """Answers that were given before; the journal keeps them."""

    def answer(self, key: AnswerKey) -> Answer | None: ...

    def write_answer(self, key: AnswerKey, answer: Answer) -> None: ...


class Observer(Protocol):
    """Hears what the ClientApp does; a call has been told to the world when it returns."""

    def checked_in(self, node_id: int, nonce: str) -> None: ...

    def working(self, phase: Phase, round_number: int) -> None: ...

    def step(self, round_number: int, report: StepReport) -> None: ...


def build_client_app(
    membership: Membership,
    trainer: Trainer,
    *,
    answers: Answers,
    observer: Observer,
    should_stop: Callable[[], bool],
) -> ClientApp:
    """Return the ClientApp of one task. What it cannot do it answers with a Flower error."""
    handlers = _Handlers(membership, trainer, answers, observer, should_stop)
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return handlers.answered(message, lambda config: handlers.query(config, context.node_id))

    @app.train()
    def train(message: Message, _: Context) -> Message:
        return handlers.answered(message, lambda config: handlers.train(config, message))

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        return handlers.answered(message, lambda config: handlers.evaluate(config, message))

    return app


class _NotMyTask(TrellisError):
    """A message of another task reached this device."""


@dataclass(frozen=True)
class _Handlers:
    membership: Membership
    trainer: Trainer
    answers: Answers
    observer: Observer
    should_stop: Callable[[], bool]

    def answered(self, message: Message, handle: Callable[[ConfigRecord], RecordDict]) -> Message:
        """Return the reply of `handle`, or the error that says why there is none."""
        kind = message.metadata.message_type
        try:
            return Message(handle(self._config(message)), reply_to=message)
        except _NotMyTask as error:
            logger.warning("%s message is not ours: %s", kind, error)
            return _error(NOT_MY_TASK, error, message)
        except Canceled as error:
            logger.info("%s", error)
            return _error(CANCELED, error, message)
        except TrellisError as error:
            logger.error("%s failed: %s", kind, error)
            return _error(TRAINING_FAILED, error, message)
        except Exception as error:  # a user's model or a runtime may raise anything: the server must hear it
            logger.exception("%s failed", kind)
            return _error(TRAINING_FAILED, error, message)

    def query(self, config: ConfigRecord, node_id: int) -> RecordDict:
        nonce = config.get("nonce")
        if not isinstance(nonce, str) or not nonce:
            raise PayloadError("query message", f"its nonce must be a text, got {nonce!r}")
        self.observer.checked_in(node_id, nonce)
        who = self.membership
        reply = ConfigRecord(
            {
                "task": who.task,
                "region": who.region,
                "device": who.device,
                "nonce": nonce,
                "samples": self.trainer.samples,
            }
        )
        return RecordDict({"config": reply})

    def train(self, config: ConfigRecord, message: Message) -> RecordDict:
        request = _request(config)
        incoming = _record(message)
        key = self._key("train", request, incoming, config)
        if (known := self.answers.answer(key)) is not None:
            logger.info("round %d was trained before: answered from the journal", request.round)
            return _content(known)
        self.observer.working(Phase.TRAINING, request.round)
        trained = self.trainer.train(
            unpack_arrays(incoming),
            request,
            on_step=lambda report: self.observer.step(request.round, report),
            should_stop=self.should_stop,
        )
        answer = Answer(trained.metrics, _stored(pack_arrays(trained.arrays)))
        # The journal first: a power cut from here on costs an upload, not the training.
        self.answers.write_answer(key, answer)
        logger.info(
            "round %d: trained on %d samples in %.1f s, loss %.4f",
            request.round,
            trained.metrics["num-examples"],
            trained.metrics["duration_s"],
            trained.metrics["train_loss"],
        )
        return _content(answer)

    def evaluate(self, config: ConfigRecord, message: Message) -> RecordDict:
        request = _request(config)
        incoming = _record(message)
        key = self._key("evaluate", request, incoming, config)
        if (known := self.answers.answer(key)) is not None:
            logger.info("round %d was evaluated before: answered from the journal", request.round)
            return _content(known)
        self.observer.working(Phase.EVALUATING, request.round)
        metrics = self.trainer.evaluate(unpack_arrays(incoming), should_stop=self.should_stop)
        answer = Answer(metrics)
        self.answers.write_answer(key, answer)
        logger.info(
            "round %d: evaluated, loss %.4f, accuracy %.4f",
            request.round,
            metrics["eval_loss"],
            metrics["eval_accuracy"],
        )
        return _content(answer)

    def _config(self, message: Message) -> ConfigRecord:
        config = message.content.get("config")
        if not isinstance(config, ConfigRecord):
            raise PayloadError("Flower message", "has no ConfigRecord 'config'")
        task = config.get("task")
        if task != self.membership.task:
            raise _NotMyTask(
                f"device '{self.membership.region}/{self.membership.device}' works on task "
                f"{self.membership.task!r}, the message is of {task!r}"
            )
        # 0 asks for none. Another revision's rounds must not be trained with this one's learning rate.
        revision = config.get("revision", 0)
        if revision not in {0, self.membership.revision}:
            raise _NotMyTask(
                f"device '{self.membership.region}/{self.membership.device}' works on revision "
                f"{self.membership.revision} of task {task!r}, the message is of revision {revision!r}"
            )
        return config

    def _key(self, kind: str, request: Request, incoming: ArrayRecord, config: ConfigRecord) -> AnswerKey:
        return AnswerKey(
            task=self.membership.task,
            tier=self.membership.tier,
            kind=kind,
            round=request.round,
            arrays=digest_of_arrays(_stored(incoming)),
            config=digest_of_config(config, self.membership.digest),
        )


def _request(config: ConfigRecord) -> Request:
    number = config.get("round")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise PayloadError("Flower message", f"its round must be a number from 0, got {number!r}")
    mu = config.get("proximal-mu", 0.0)
    if not isinstance(mu, int | float) or isinstance(mu, bool):
        raise PayloadError("Flower message", f"its proximal-mu must be a number, got {mu!r}")
    initial = config.get("report-initial-loss", False)
    if not isinstance(initial, bool):
        raise PayloadError("Flower message", f"its report-initial-loss must be a boolean, got {initial!r}")
    return Request(number, float(mu), initial)


def _record(message: Message) -> ArrayRecord:
    arrays = message.content.get("arrays")
    if not isinstance(arrays, ArrayRecord):
        raise PayloadError("Flower message", "has no ArrayRecord 'arrays'")
    return arrays


def _stored(record: ArrayRecord) -> tuple[StoredArray, ...]:
    return tuple(
        StoredArray(name, array.dtype, tuple(array.shape), array.stype, array.data)
        for name, array in record.items()
    )


def _content(answer: Answer) -> RecordDict:
    content = RecordDict({"metrics": MetricRecord(dict(answer.metrics))})
    if answer.arrays:
        content["arrays"] = ArrayRecord(
            {a.name: Array(dtype=a.dtype, shape=a.shape, stype=a.stype, data=a.data) for a in answer.arrays}
        )
    return content


def _error(code: int, error: Exception, message: Message) -> Message:
    said = str(error) if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
    return Message(Error(code=code, reason=said[:2000]), reply_to=message)
