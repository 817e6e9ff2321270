"""What a tier asks of its members, and how these answer: devices, and regions that aggregate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from trellis.errors import Canceled, PayloadError, TrellisError, in_one_line
from trellis.flower.answers import StoredArray, digest_of_arrays, digest_of_config

logger = logging.getLogger(__name__)

TRAINING_FAILED = 100
NOT_MY_TASK = 101
CANCELED = 102


@dataclass(frozen=True)
class Membership:
    """Who answers, and for which task: the descriptor's digest names it beyond doubt.

    Attributes:
        tier: Where the answers are averaged: `central` or `regional`.
        device: Its name in its region; a region that aggregates answers as its `gateway`.
    """

    task: str
    revision: int
    digest: str
    tier: str
    region: str
    device: str

    @property
    def name(self) -> str:
        """`region/device`: unique in a federation."""
        return f"{self.region}/{self.device}"


@dataclass(frozen=True)
class Question:
    """A train or evaluate message, read and checked.

    Attributes:
        arrays: The model as it came.
        digests: SHA-256 of the arrays, and of the configuration under its descriptor: the same question has
            the same two, whoever asks it again and under whatever ID.
    """

    round: int
    proximal_mu: float
    report_initial_loss: bool
    arrays: ArrayRecord
    digests: tuple[str, str]


class _NotMyTask(TrellisError):
    """A message of another task has come."""


def answered(
    message: Message,
    membership: Membership,
    handle: Callable[[ConfigRecord], RecordDict],
    *,
    passing: tuple[type[Exception], ...] = (),
) -> Message:
    """Return the reply of `handle` to a message of this task, or the Flower error that says why not.

    What is in `passing` is raised: no answer, because whoever comes back may give a good one.
    """
    kind = message.metadata.message_type
    try:
        return Message(handle(_config(message, membership)), reply_to=message)
    except passing:
        raise
    except _NotMyTask as error:
        logger.warning("%s message is not ours: %s", kind, error)
        return _error(NOT_MY_TASK, error, message)
    except Canceled as error:
        logger.info("%s", error)
        return _error(CANCELED, error, message)
    except TrellisError as error:
        # What a user's model raised stands behind it, and where.
        logger.error("%s failed: %s", kind, error, exc_info=error.__cause__ is not None)
        return _error(TRAINING_FAILED, error, message)
    except Exception as error:  # a user's model or a runtime may raise anything: the server must hear it
        logger.exception("%s failed", kind)
        return _error(TRAINING_FAILED, error, message)


def nonce_of(config: ConfigRecord) -> str:
    """Return what a query hands to a node, to prove who it is.

    Raises:
        PayloadError: It is none.
    """
    nonce = config.get("nonce")
    if not isinstance(nonce, str) or not nonce:
        raise PayloadError("query message", f"its nonce must be a text, got {nonce!r}")
    return nonce


def who_answers(membership: Membership, nonce: str, samples: int) -> RecordDict:
    """Return the answer to a query; `samples` is what this member trains on."""
    reply = ConfigRecord(
        {
            "task": membership.task,
            "region": membership.region,
            "device": membership.device,
            "nonce": nonce,
            "samples": samples,
        }
    )
    return RecordDict({"config": reply})


def question_of(message: Message, config: ConfigRecord, membership: Membership) -> Question:
    """Return what a train or evaluate message asks.

    Raises:
        PayloadError: It is not made as it must be; the field and the value are named.
    """
    number = config.get("round")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise PayloadError("Flower message", f"its round must be a number from 0, got {number!r}")
    mu = config.get("proximal-mu", 0.0)
    if not isinstance(mu, int | float) or isinstance(mu, bool):
        raise PayloadError("Flower message", f"its proximal-mu must be a number, got {mu!r}")
    initial = config.get("report-initial-loss", False)
    if not isinstance(initial, bool):
        raise PayloadError("Flower message", f"its report-initial-loss must be a boolean, got {initial!r}")
    arrays = message.content.get("arrays")
    if not isinstance(arrays, ArrayRecord):
        raise PayloadError("Flower message", "has no ArrayRecord 'arrays'")
    digests = digest_of_arrays(stored(arrays)), digest_of_config(config, membership.digest)
    return Question(number, float(mu), initial, arrays, digests)


def stored(record: ArrayRecord) -> tuple[StoredArray, ...]:
    """Return the arrays of a record as they travel."""
    return tuple(
        StoredArray(name, array.dtype, tuple(array.shape), array.stype, array.data)
        for name, array in record.items()
    )


def _config(message: Message, membership: Membership) -> ConfigRecord:
    config = message.content.get("config")
    if not isinstance(config, ConfigRecord):
        raise PayloadError("Flower message", "has no ConfigRecord 'config'")
    task = config.get("task")
    if task != membership.task:
        raise _NotMyTask(f"{membership.name!r} works on task {membership.task!r}, the message is of {task!r}")
    # 0 asks for none. Another revision's rounds must not be trained with this one's learning rate.
    revision = config.get("revision", 0)
    if revision not in {0, membership.revision}:
        raise _NotMyTask(
            f"{membership.name!r} works on revision {membership.revision} of task {task!r}, the message is "
            f"of revision {revision!r}"
        )
    return config


def _error(code: int, error: Exception, message: Message) -> Message:
    return Message(Error(code=code, reason=in_one_line(error)), reply_to=message)
