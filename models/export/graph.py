"""A model's programs as graphs of plain operators: no autograd, no state, no randomness is left in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.export.decompositions import table
from models.export.faults import TRAIN_WITH_TORCH, not_exportable
from models.export.source import Source
from models.export.trail import ModuleTrail, exported_module_of, module_of
from models.manifest import Runtime, buffer_role, gradient_role, mask_role, tensor_role
from models.own_code import is_models_own

Tensors = dict[str, torch.Tensor]

_LEAST_WEIGHT = 1e-6
"""Instead of a division by zero where no sample counts; far below one sample."""


@dataclass(frozen=True)
class Graph:
    """One or more programs as one flat graph.

    Attributes:
        module: Takes and gives tensors in a row; a traced graph, or to predict the model itself.
        inputs: The role of every argument.
        outputs: Program and role of every result.
        example: Arguments of the right shapes and dtypes.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    example: tuple[torch.Tensor, ...]

    @property
    def programs(self) -> list[str]:
        """The names of the programs in it."""
        return list(dict.fromkeys(program for program, _ in self.outputs))

    def takes(self, program: str, role: str) -> bool:
        """Return whether a program takes the input of that role: only training draws masks."""
        return program == "train" or not role.startswith(mask_role(""))

    def modules_with(self, operator: str) -> list[str]:
        """Return the names of the model's modules in which an operator stands.

        Args:
            operator: `aten.add.Tensor`, or where only a converter's own name is known, `add`.
        """
        standing = [(str(node.target).removesuffix(".default"), whose) for node, whose in self._nodes()]
        same = {whose for target, whose in standing if target == operator}
        bare = operator.split(".")[1] if "." in operator else operator
        alike = {whose for target, whose in standing if bare in target}
        return sorted(same or alike)

    def _nodes(self) -> list[tuple[torch.fx.Node, str]]:
        if isinstance(self.module, torch.fx.GraphModule):
            nodes = self.module.graph.nodes
            return [(node, module_of(node)) for node in nodes if node.op == "call_function"]
        nodes = torch.export.export(self.module, self.example, strict=False).graph.nodes
        return [(node, exported_module_of(node)) for node in nodes if node.op == "call_function"]


def trace(source: Source, programs: Sequence[str], *, runtime: Runtime, batch: int, dynamic: bool) -> Graph:
    """Return the programs as one graph.

    Args:
        source: The model.
        programs: Of `train` and `eval`.
        runtime: Whose operators the graph may use.
        batch: Samples of the example.
        dynamic: The graph takes any number of samples.

    Raises:
        InvalidInput: The model does something that no graph can say; the message names the module.
    """
    example = example_inputs(source, programs, batch=batch, runtime=runtime)
    outputs: list[tuple[str, str]] = []

    def flat(*values: torch.Tensor) -> list[torch.Tensor]:
        results = _run(source, programs, dict(zip(example, values, strict=True)))
        outputs[:] = results
        return list(results.values())

    trail = ModuleTrail()
    with plain_kernels(), _shapes_alone() as shapes:
        values = [
            _shaped(shapes, value, any_batch=dynamic and has_batch(role)) for role, value in example.items()
        ]
        try:
            with trail.followed(source.module):
                whole = make_fx(flat)(*values)
            _refuse_randomness(source, runtime, whole)
            lowered = _lowered(whole, trail, values, runtime)
        except Exception as error:  # a module of a user's, which may raise anything
            if not is_models_own(error):
                raise
            raise _untraceable(source, runtime, trail.current, error) from error
    lowered.graph.eliminate_dead_code()
    lowered.recompile()
    return Graph(lowered, tuple(example), tuple(outputs), tuple(example.values()))


def trace_forward(module: nn.Module, arrays: Sequence[str], shape: tuple[int, ...]) -> torch.fx.GraphModule:
    """Return the forward pass alone, in PyTorch's own operators, with the arrays so named as its inputs."""
    state = module.state_dict()
    values = [state[name].detach().clone() for name in arrays]

    def flat(*given: torch.Tensor) -> torch.Tensor:
        *weights, x = given
        return _logits(module, dict(zip(arrays, weights, strict=True)), x)

    with plain_kernels():
        return make_fx(flat)(*values, torch.zeros(2, *shape))


def has_batch(role: str) -> bool:
    """Return whether the input of that role has the samples along its first axis."""
    return not role.startswith(tensor_role(""))


def example_inputs(source: Source, programs: Sequence[str], *, batch: int, runtime: Runtime) -> Tensors:
    """Return what the programs take, by role: the model's own arrays, and samples of zeros."""
    arrays = source.module.state_dict()
    inputs = {tensor_role(name): arrays[name].detach().clone() for name in source.fed}
    if "train" in programs:
        inputs |= {mask_role(mask.name): torch.ones(batch, *mask.shape) for mask in source.masks}
    inputs["x"] = torch.zeros(batch, *source.shape)
    inputs["y"] = torch.zeros(batch, dtype=torch.int64 if runtime == "onnx" else torch.int32)
    inputs["w"] = torch.ones(batch)
    return inputs


def _run(
    source: Source, programs: Sequence[str], inputs: Mapping[str, torch.Tensor]
) -> dict[tuple[str, str], torch.Tensor]:
    results: dict[tuple[str, str], torch.Tensor] = {}
    for program in programs:
        run = {"train": _train, "eval": _evaluate}[program]
        results |= {(program, role): value for role, value in run(source, inputs).items()}
    return results


def _train(source: Source, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    arrays = {name: inputs[tensor_role(name)] for name in source.fed}
    leaves = {name: arrays[name].detach().requires_grad_(True) for name in source.trained}
    kept = {name: array.clone() for name, array in arrays.items() if name not in leaves}
    masks = [inputs[mask_role(mask.name)] for mask in source.masks]
    source.module.train()
    with source.dropout.fed(masks):
        logits = functional_call(source.module, {**leaves, **kept}, (inputs["x"],))
    loss, correct = _measured(logits, inputs["y"], inputs["w"])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {gradient_role(name): gradient for name, gradient in zip(leaves, gradients, strict=True)}
    buffers = {buffer_role(name): kept[name] for name in source.renewed}
    return {"loss": loss.detach(), "correct": correct.detach(), **named, **buffers}


def _evaluate(source: Source, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    arrays = {name: inputs[tensor_role(name)] for name in source.fed}
    logits = _logits(source.module, arrays, inputs["x"])
    loss, correct = _measured(logits, inputs["y"], inputs["w"])
    return {"loss": loss, "correct": correct, "logits": logits}


def _logits(module: nn.Module, arrays: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return what the module says of samples when it does not train."""
    module.eval()
    with torch.no_grad():
        logits: torch.Tensor = functional_call(module, dict(arrays), (x,))
    return logits


def _measured(logits: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cross-entropy of the samples that count, and how many of them are told right."""
    hits = (y[:, None] == torch.arange(logits.shape[1], dtype=y.dtype)[None]).to(logits.dtype)
    by_sample = -(functional.log_softmax(logits, 1) * hits).sum(1)
    loss = (by_sample * w).sum() / w.sum().clamp(min=_LEAST_WEIGHT)
    right = (logits.argmax(1).to(y.dtype) == y).to(logits.dtype)
    return loss, (right * w).sum()


class _Replay(torch.fx.Interpreter):
    """Runs a graph again, so that it is traced again, and says whose each operator is."""

    def __init__(self, graph: torch.fx.GraphModule, trail: ModuleTrail) -> None:
        super().__init__(graph)
        self._trail = trail

    def run_node(self, n: torch.fx.Node) -> Any:
        with self._trail.within(module_of(n)):
            return super().run_node(n)


def _lowered(
    whole: torch.fx.GraphModule,
    trail: ModuleTrail,
    example: Iterable[torch.Tensor],
    runtime: Runtime,
) -> torch.fx.GraphModule:
    """Return the graph without writes in place, in the operators that the runtime's converter knows."""
    replay: Callable[..., Any] = _Replay(whole, trail).run
    with torch.no_grad():
        traced = make_fx(functionalize(replay), decomposition_table=table(runtime))
        return traced(*example)


def _shapes_alone() -> FakeTensorMode:
    # What the model keeps inside beside its state_dict is real.
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def _shaped(shapes: FakeTensorMode, value: torch.Tensor, *, any_batch: bool) -> torch.Tensor:
    """Return a tensor that has only a shape: its first axis of any size, if so wanted.

    Tracing with every axis of any size (`tracing_mode="symbolic"`) takes ten times as long.
    """
    batch = DimDynamic.DUCK if any_batch else DimDynamic.STATIC
    sizes = [batch if axis == 0 else DimDynamic.STATIC for axis in range(value.dim())]
    return shapes.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Keep operators of oneDNN, fused attention and whole recurrent layers out of what is traced."""
    # Recurrent layers are written out in Python, which knows of batches of any size: native code does not.
    written_out = enable_python_dispatcher()
    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), written_out:
        yield


def _refuse_randomness(source: Source, runtime: Runtime, graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            problem = f"its operator {node.target} draws at random, which no device could repeat"
            remedy = f"use nn.Dropout, nn.Dropout1d, 2d or 3d as a layer, {TRAIN_WITH_TORCH}"
            raise not_exportable(source.model, runtime, problem, remedy, module=module_of(node))


def _untraceable(source: Source, runtime: Runtime, module: str, error: Exception) -> Exception:
    problem = f"it cannot be written as one graph: {' '.join(str(error).split())[:300]}"
    remedy = f"do without branches and numbers that depend on the samples, {TRAIN_WITH_TORCH}"
    return not_exportable(source.model, runtime, problem, remedy, module=module)
