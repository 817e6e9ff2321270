"""What a region has said of its part in a task, as small files that survive a kill at any moment."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from trellis.errors import DiskFailed, PayloadError
from trellis.files import write_atomically
from trellis.payloads import Execution

logger = logging.getLogger(__name__)

_EXECUTION, _PUSHING = "execution.json", "pushing"


class TaskFolders:
    """One folder for each task that the region aggregates, below `root`; it is an `ExecutionJournal`.

    A run's own folder is that of its revision. The execution stands beside those: its version goes on growing
    from one revision to the next.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def of(self, task: str) -> Path:
        """Return a task's folder."""
        return self._root / task

    def run(self, task: str, revision: int) -> Path:
        """Return the folder of a revision's run."""
        return self.of(task) / f"r{revision}"

    def node(self, task: str, address: str) -> Path:
        """Return the folder of the region's node at a front.

        Each task has one of its own: several may run at once, and each reads only its own messages.
        """
        return self.of(task) / "flower" / address.replace(":", "_").strip("[]")

    def latest_run(self, task: str, revision: int) -> Path:
        """Return the folder of the run that `revision` called off: the last before it, if there is one."""
        runs = {int(path.name[1:]): path for path in self._runs(task)}
        return runs[max(runs)] if runs else self.run(task, revision)

    def execution(self, task: str) -> Execution | None:
        """Return the execution as it was last written; one that cannot be read is as none."""
        path = self.of(task) / _EXECUTION
        try:
            return Execution.parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, PayloadError) as error:
            logger.error("%s cannot be read, its task is as new: %s", path, error)
            return None

    def write_execution(self, task: str, execution: Execution) -> None:
        """Return once the execution is on disk.

        Raises:
            DiskFailed: The disk does not take it.
        """
        self._write(task, _EXECUTION, execution.to_bytes())

    def pushing(self, task: str) -> str | None:
        """Return the message whose reply was being uploaded when this was last written."""
        try:
            return (self.of(task) / _PUSHING).read_text() or None
        except OSError:
            return None

    def write_pushing(self, task: str, message_id: str | None) -> None:
        """Return once it is on disk which message's reply is about to be uploaded.

        Raises:
            DiskFailed: The disk does not take it.
        """
        self._write(task, _PUSHING, (message_id or "").encode())

    def forget_answers(self, task: str) -> None:
        """Drop what only a task that goes on needs: messages that wait for an answer, and the node's key.

        Raises:
            DiskFailed: The disk does not let it go.
        """
        try:
            (self.of(task) / _PUSHING).unlink(missing_ok=True)
        except OSError as error:
            raise DiskFailed(f"{self.of(task) / _PUSHING} cannot be removed: {error.strerror}") from error
        shutil.rmtree(self.of(task) / "flower", ignore_errors=True)

    def remove_runs(self, task: str) -> None:
        """Remove what the task's runs left; its execution's version stays."""
        for path in self._runs(task):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self, task: str) -> None:
        """Remove all of the task."""
        shutil.rmtree(self.of(task), ignore_errors=True)

    def _runs(self, task: str) -> list[Path]:
        found = self.of(task).glob("r[0-9]*")
        return [path for path in found if path.name[1:].isdecimal()]

    def _write(self, task: str, name: str, content: bytes) -> None:
        path = self.of(task) / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise DiskFailed(f"{path} cannot be written: {error.strerror}; free space there") from error
