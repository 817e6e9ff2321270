"""The LiteRT (TensorFlow Lite) backend, on the processor.

Bit for bit the same for the same arguments and number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ai_edge_litert.interpreter import Interpreter

from models.backends.graph import Array, fetched_roles
from models.exported import Artefact
from trellis.errors import ArtefactError, TrainingFailed


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
            with self._one_at_a_time:
                found = self._programs[program](
                    **{names.inputs[role]: array for role, array in inputs.items()}
                )
        except (ValueError, RuntimeError) as error:
            raise TrainingFailed(
                f"model {self._manifest.model!r} failed in LiteRT: {str(error)[:500]}"
            ) from error
        return {role: found[names.outputs[role]] for role in fetched_roles(names)}
