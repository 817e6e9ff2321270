"""The ONNX Runtime backend, on the processor.

Bit for bit the same for the same arguments and number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime

from models.backends.graph import Array, fetched_roles
from models.exported import Artefact
from trellis.errors import ArtefactError, TrainingFailed


def open_runtime(artefact: Artefact, *, threads: int) -> OnnxRuntime:
    """Return what runs the artefact; see `models.backends.open_runtime`."""
    return OnnxRuntime(artefact, threads=threads)


class OnnxRuntime:
    """A `models.backends.graph.Runtime`.

    Raises:
        ArtefactError: ONNX Runtime does not take the file.
    """

    name = "onnx"

    def __init__(self, artefact: Artefact, *, threads: int) -> None:
        try:
            self._session = onnxruntime.InferenceSession(
                artefact.content, _options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no base but Exception
            problem = f"ONNX Runtime {onnxruntime.__version__} does not take it: {_first_line(error)}"
            raise ArtefactError(f"artefact {artefact.where!r}", problem) from error
        self._manifest = artefact.manifest
        self._outputs = {
            name: {role: program.outputs[role] for role in fetched_roles(program)}
            for name, program in artefact.manifest.programs.items()
        }
        self._run = onnxruntime.RunOptions()
        # One graph holds all programs: an evaluation is not to pay for gradients.
        self._run.only_execute_path_to_fetches = True

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = self._manifest.programs[program].inputs
        outputs = self._outputs[program]
        try:
            found = self._session.run(
                list(outputs.values()), {names[role]: array for role, array in inputs.items()}, self._run
            )
        except Exception as error:  # as above
            raise TrainingFailed(
                f"model {self._manifest.model!r} failed in ONNX Runtime: {_first_line(error)}"
            ) from error
        return dict(zip(outputs, found, strict=True))


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # In its default order all gradients by kernels come last, when their inputs have left the cache.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    # Between two steps the optimiser works in numpy: threads that spin would take the cores from it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of all memory is made for every number of samples, and each takes a block of its own.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors: its warnings are about graphs, which are not ours to mend here
    return options


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
