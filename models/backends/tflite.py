"""The LiteRT (TensorFlow Lite) backend, on the processor.

Bit for bit the same for the same arguments and number of threads.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from ai_edge_litert.interpreter import Interpreter

from models.backends.graph import Array, fetched_roles
from models.exported import Artefact
from trellis.errors import ArtefactError, TrainingFailed

_STDERR = 2
_NOTE = b"INFO: "
_first_run = threading.Lock()
_quiet_from_now = threading.Event()


def open_runtime(artefact: Artefact, *, threads: int) -> TfliteRuntime:
    """Return what runs the artefact; see `models.backends.open_runtime`."""
    return TfliteRuntime(artefact, threads=threads)


class TfliteRuntime:
    """A `models.backends.graph.Runtime`.

    Raises:
        ArtefactError: LiteRT does not take the file.
    """

    name = "tflite"

    def __init__(self, artefact: Artefact, *, threads: int) -> None:
        self._manifest = artefact.manifest
        # An interpreter has one set of tensors, and replicas of a device train in threads of one process.
        self._one_at_a_time = threading.Lock()
        try:
            self._interpreter = Interpreter(model_content=artefact.content, num_threads=threads)
            self._programs = {
                name: self._interpreter.get_signature_runner(name) for name in artefact.manifest.programs
            }
        except (ValueError, RuntimeError) as error:
            problem = f"LiteRT does not take it: {str(error)[:500]}"
            raise ArtefactError(f"artefact {artefact.where!r}", problem) from error

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = self._manifest.programs[program]
        try:
            with self._one_at_a_time, _without_notes():
                found = self._programs[program](
                    **{names.inputs[role]: array for role, array in inputs.items()}
                )
        except (ValueError, RuntimeError) as error:
            raise TrainingFailed(
                f"model {self._manifest.model!r} failed in LiteRT: {str(error)[:500]}"
            ) from error
        return {role: found[names.outputs[role]] for role in fetched_roles(names)}


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keep off the terminal what LiteRT notes on stderr at a process's first run: that it made a delegate.

    It has no switch for that. Whatever else is written meanwhile is written afterwards.
    """
    if _quiet_from_now.is_set():
        yield
        return
    with _first_run, ExitStack() as until_then:
        try:
            held = until_then.enter_context(tempfile.TemporaryFile())
            kept = os.dup(_STDERR)
            until_then.callback(os.close, kept)
        except OSError:  # no stderr, or nowhere to hold it: then it may talk, and is asked no second time
            _quiet_from_now.set()
            yield
            return
        try:
            os.dup2(held.fileno(), _STDERR)
            yield
            _quiet_from_now.set()
        finally:
            os.dup2(kept, _STDERR)
            held.seek(0)
            rest = b"".join(line for line in held if not line.startswith(_NOTE))
            if rest:
                os.write(_STDERR, rest)
