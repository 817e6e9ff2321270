"""Checkpoints: what a task needs to go on after a crash, as one safetensors file a round.

`checkpoints/round-NNNN.safetensors` holds the global model, the strategy's state (moments of an optimiser)
and, as metadata, the round's record and what early stopping remembers. It is written whole, once the round
is evaluated and before it is reported: what a checkpoint has not, is done again, and devices answer it from
their journals. Every random choice derives from seed and round, so there is no generator to store.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from trellis.disk import read_through
from trellis.errors import Damaged
from trellis.files import write_atomically
from trellis.flower.backchannel import RoundRecord
from trellis.tensors import Arrays
from trellis.tier.stopping import Progress

logger = logging.getLogger(__name__)

_ROUND_FILE = re.compile(r"round-([0-9]{4,9})\.safetensors")
_KEPT = 2
"""The newest, and one before it in case a disk loses the last write."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after a finished round.

    Attributes:
        round: The finished round.
        arrays: The global model.
        strategy: The strategy's named arrays, by attribute.
        record: What is reported of the round.
        progress: What early stopping remembers.
        question: Digest of the message from above that a region's round is a part of the answer to.
    """

    round: int
    arrays: Arrays
    strategy: dict[str, Arrays] = field(default_factory=dict)
    record: RoundRecord | None = None
    progress: Progress = field(default_factory=Progress)
    question: str = ""


class Checkpoints:
    """The checkpoints of one task in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoints"

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; on return it survives a crash. Older ones than the last two are removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model/{name}": array for name, array in checkpoint.arrays.items()}
        for attribute, arrays in checkpoint.strategy.items():
            tensors |= {f"strategy/{attribute}/{name}": array for name, array in arrays.items()}
        contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
        metadata = {
            "round": str(checkpoint.round),
            "order": json.dumps(list(checkpoint.arrays)),
            "progress": json.dumps(asdict(checkpoint.progress)),
            "question": checkpoint.question,
        }
        if checkpoint.record is not None:
            metadata["record"] = checkpoint.record.model_dump_json()
        path = self._folder / f"round-{checkpoint.round:04d}.safetensors"
        write_atomically(path, save(contiguous, metadata=metadata))
        for old in self._files()[:-_KEPT]:
            old.unlink()

    def drop_from(self, round_number: int) -> None:
        """Remove the checkpoints of this round and later ones: those rounds are about to be done anew."""
        for number, path in self._numbered():
            if number >= round_number:
                path.unlink()

    def latest(self) -> Checkpoint | None:
        """Return the newest readable checkpoint, None if there is none. One that is not is passed over.

        Raises:
            OSError: There are some, and the disk gives none of those that may be whole.
            Damaged: There are some, and none is whole: what was done before must not be begun anew unseen.
        """
        unread: list[str] = []
        refused: OSError | None = None
        for path in reversed(self._files()):
            try:
                return _read(path)
            except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
                logger.error("checkpoint %s cannot be read: %s", path, error)
                unread.append(f"{path}: {error}")
                if isinstance(error, OSError):
                    refused = OSError(error.errno, error.strerror or str(error), str(path))
        if refused is not None:
            raise refused
        if unread:
            remedy = "post the task under a higher revision to begin anew"
            raise Damaged(f"no checkpoint is whole ({'; '.join(unread)}): {remedy}")
        return None

    def _files(self) -> list[Path]:
        return [path for _, path in self._numbered()]

    def _numbered(self) -> list[tuple[int, Path]]:
        # By number: as text round 10000 comes before round 9999.
        matches = [(_ROUND_FILE.fullmatch(path.name), path) for path in self._folder.glob("round-*")]
        return sorted((int(match[1]), path) for match, path in matches if match)


def _read(path: Path) -> Checkpoint:
    # safetensors maps the file: what the disk does not give of that is no error, but the end of the process.
    read_through(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    strategy: dict[str, Arrays] = {}
    for key, array in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "strategy":
            attribute, _, name = rest.partition("/")
            strategy.setdefault(attribute, {})[name] = array
    order = json.loads(metadata["order"])
    record = metadata.get("record")
    return Checkpoint(
        round=int(metadata["round"]),
        arrays={name: tensors[f"model/{name}"] for name in order},
        strategy={attribute: _in_order(arrays, order) for attribute, arrays in strategy.items()},
        record=None if record is None else RoundRecord.model_validate_json(record),
        progress=Progress(**json.loads(metadata["progress"])),
        question=metadata.get("question", ""),
    )


def _in_order(arrays: Arrays, order: list[str]) -> Arrays:
    """Return a strategy's arrays in the order of the model's: there are strategies that go by position."""
    first = [name for name in order if name in arrays]
    return {name: arrays[name] for name in [*first, *sorted(arrays.keys() - set(first))]}
