"""Messages that a Flower client has received and not yet answered, kept on disk.

A SuperLink hands a message out once and never again. So it is written here before its receipt is confirmed,
and after a crash it is answered from here. One file a message: a JSON line, then the objects one after
another; written to a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trellis.files import replacing

logger = logging.getLogger(__name__)

_SUFFIX = ".message"


@dataclass(frozen=True)
class Letter:
    """One message as it came: Flower's objects by their SHA-256 IDs.

    Attributes:
        message_id: The message's object ID, which its reply names.
        run_id: The Flower run that sent it.
        node_id: The node it was sent to; another node can't answer it.
        objects: Object ID → deflated object.
        inline: Whether it came whole (`trellis.flower.inline`), and so may its reply.
    """

    message_id: str
    run_id: int
    node_id: int
    objects: Mapping[str, bytes]
    inline: bool = False


@dataclass(frozen=True)
class Inbox:
    """The unanswered messages in one folder, oldest first."""

    folder: Path

    def keep(self, letter: Letter) -> None:
        """Write `letter`; on return it survives a crash."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {
            "message_id": letter.message_id,
            "run_id": letter.run_id,
            "node_id": letter.node_id,
            "objects": [[object_id, len(content)] for object_id, content in letter.objects.items()],
            "inline": letter.inline,
        }
        with replacing(self._path(letter.message_id)) as file:
            file.write(json.dumps(head).encode() + b"\n")
            for content in letter.objects.values():
                file.write(content)

    def letters(self) -> Iterator[Letter]:
        """Return what is unanswered, oldest first. A torn file is moved aside, and said so."""
        if not self.folder.exists():
            return
        for partial in self.folder.glob("*.partial"):
            partial.unlink()  # a kill tore it before it was confirmed: the SuperLink still has it
        for path in sorted(self.folder.glob("*" + _SUFFIX), key=lambda p: p.stat().st_mtime_ns):
            letter = _read(path)
            if letter is None:
                logger.error("inbox: %s is damaged and was set aside as .damaged", path)
                path.replace(path.with_suffix(".damaged"))
            else:
                yield letter

    def drop(self, message_id: str) -> None:
        """Forget a message: it is answered, or can be answered no more."""
        self._path(message_id).unlink(missing_ok=True)

    def keep_only_of(self, node_id: int) -> list[Letter]:
        """Return what was sent to this node, oldest first; forget the rest: those nodes are gone."""
        mine = []
        for letter in self.letters():
            if letter.node_id == node_id:
                mine.append(letter)
            else:
                self.drop(letter.message_id)
        return mine

    def clear(self) -> None:
        """Forget all: the node that they were sent to is gone."""
        if self.folder.exists():
            for path in self.folder.glob("*" + _SUFFIX):
                path.unlink(missing_ok=True)

    def _path(self, message_id: str) -> Path:
        if not message_id.isalnum():
            raise ValueError(f"message ID {message_id!r} is no hex digest")
        return self.folder / f"{message_id}{_SUFFIX}"


def _read(path: Path) -> Letter | None:
    raw = path.read_bytes()
    line, separator, body = raw.partition(b"\n")
    try:
        head = json.loads(line)
        sizes = [(str(object_id), int(size)) for object_id, size in head["objects"]]
        if not separator or sum(size for _, size in sizes) != len(body):
            return None
        objects, start = {}, 0
        for object_id, size in sizes:
            objects[object_id] = body[start : start + size]
            start += size
        return Letter(
            str(head["message_id"]),
            int(head["run_id"]),
            int(head["node_id"]),
            objects,
            inline=head.get("inline") is True,
        )
    except (ValueError, KeyError, TypeError):
        return None
