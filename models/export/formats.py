"""The two formats behind one door; the packages of either are imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.export.graph import Graph, plain_kernels
from models.manifest import Manifest, Program, Runtime


@dataclass(frozen=True)
class Converted:
    """A file without its manifest: its content, its operators, and what its inputs and outputs are called."""

    runtime: Runtime
    content: bytes
    opset: str
    programs: dict[str, Program]

    def with_manifest(self, manifest: Manifest) -> bytes:
        """Return the whole file."""
        if self.runtime == "onnx":
            from models.export import onnx  # noqa: PLC0415  # as above

            return onnx.finished(self.content, manifest)
        from models.export import tflite  # noqa: PLC0415  # as above

        return tflite.finished(self.content, manifest)


def convert(model: str, graphs: Sequence[Graph], runtime: Runtime) -> Converted:
    """Return the graphs in a runtime's format: ONNX takes one, with all programs in it, TFLite one for each.

    Raises:
        InvalidInput: The runtime lacks an operator; the message names it and the module it stands in.
    """
    with plain_kernels():
        if runtime == "onnx":
            from models.export import onnx  # noqa: PLC0415  # as above

            (graph,) = graphs
            content = onnx.convert(model, graph)
            return Converted(runtime, content, onnx.OPSET_NAME, onnx.programs_of(content, graph))
        from models.export import tflite  # noqa: PLC0415  # as above

        content = tflite.convert(model, graphs)
        return Converted(runtime, content, tflite.OPSET_NAME, tflite.programs_of(content, graphs))
