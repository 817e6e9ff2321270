"""The written-out backward passes, against autograd: the traced graph is run by PyTorch itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.export.graph import trace
from models.export.parity import TOLERANCE, greatest_difference
from models.export.quiet import quiet
from models.export.source import open_source
from models.manifest import Manifest, Program, Runtime
from models.registry import ModelSpec

SAMPLES = 5

Layers = Callable[[], list[nn.Module]]


class LastState(nn.Module):
    """The last state of a recurrent layer that reads the rows of a picture."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.layer(x.flatten(1, 2))[0]
        return states[:, -1]


class Twice(nn.Module):
    """Every pixel twice, side by side, so that each window of two has equal maxima."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x], -1).flatten(-2)


class Words(nn.Module):
    """The sum of the embeddings of numbers, which the picture has as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, padding_idx=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        indices = (x.flatten(1) * 2).abs().clamp(0, 8).long()
        words: torch.Tensor = self.table(indices)
        return words.mean(1)


CASES: dict[str, tuple[tuple[int, ...], Layers]] = {
    "strides and uneven padding": (
        (2, 9, 8),
        lambda: [nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(2, 1))],
    ),
    "dilation": ((2, 9, 9), lambda: [nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 3, padding=1, dilation=2)]),
    "to fewer channels, dilated": (
        (3, 8, 7),
        lambda: [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, (3, 2), padding=(1, 0), dilation=(2, 1))],
    ),
    "groups": ((4, 6, 6), lambda: [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, groups=2, stride=2)]),
    "depthwise, after another": (
        (2, 8, 8),
        lambda: [nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1)],
    ),
    "two for each channel, dilated": (
        (3, 9, 8),
        lambda: [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 6, (3, 2), groups=3, padding=(2, 1), dilation=(2, 3))],
    ),
    "one pixel, strides and groups": ((4, 7, 6), lambda: [nn.Conv2d(4, 6, 1, groups=2, stride=(3, 2))]),
    "transposed": ((2, 4, 4), lambda: [nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 3, 3, stride=2)]),
    "along one axis": ((2, 12), lambda: [nn.Conv1d(2, 3, 4, stride=2, padding=1), nn.Conv1d(3, 2, 2)]),
    "pooled, windows apart": ((1, 8, 6), lambda: [nn.Conv2d(1, 2, 1), nn.MaxPool2d(2)]),
    "pooled, some pixels left over": ((1, 7, 5), lambda: [nn.Conv2d(1, 2, 1), nn.MaxPool2d(2)]),
    "pooled, windows overlap": ((1, 8, 8), lambda: [nn.Conv2d(1, 2, 1), nn.MaxPool2d(3, 2, padding=1)]),
    "pooled, dilated": ((1, 8, 8), lambda: [nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, 1, dilation=2)]),
    "pooled, equal maxima": ((1, 4, 4), lambda: [nn.Conv2d(1, 2, 1), Twice(), nn.MaxPool2d(2)]),
    "pooled along one axis": ((1, 9), lambda: [nn.Conv1d(1, 2, 1), nn.MaxPool1d(2)]),
    "averaged, windows apart": ((1, 7, 6), lambda: [nn.Conv2d(1, 2, 1), nn.AvgPool2d(2)]),
    "averaged, windows overlap": ((1, 8, 8), lambda: [nn.Conv2d(1, 2, 1), nn.AvgPool2d(3, 2, padding=1)]),
    "batch normalisation": ((2, 5, 5), lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()]),
    "group and layer normalisation": (
        (4, 4, 4),
        lambda: [nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.LayerNorm(64)],
    ),
    "groups without weights": ((4, 3, 3), lambda: [nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4, affine=False)]),
    "elu, and others like it": (
        (2, 5, 5),
        lambda: [nn.Conv2d(2, 3, 3), nn.ELU(), nn.Linear(3, 4), nn.SELU(), nn.Linear(4, 4), nn.ELU(0.5)],
    ),
    "elu in place": ((2, 5, 5), lambda: [nn.Conv2d(2, 3, 3), nn.ELU(inplace=True)]),
    "dropout": ((2, 6, 6), lambda: [nn.Conv2d(2, 3, 3), nn.Dropout2d(0.4), nn.Flatten(), nn.Dropout(0.2)]),
    "gelu and tanh": ((6,), lambda: [nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4), nn.Tanh()]),
    "lstm": ((1, 4, 3), lambda: [LastState(nn.LSTM(3, 5, batch_first=True))]),
    "embedding": ((7,), lambda: [Words()]),
}


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
@pytest.mark.parametrize("case", CASES)
def test_a_written_out_step_has_the_gradients_of_autograd(case: str, runtime: Runtime) -> None:
    shape, layers = CASES[case]
    spec = _model(layers)
    with quiet():
        source = open_source(spec, shape=shape, classes=3, runtime=runtime)
        graph = trace(source, ["train", "eval"], runtime=runtime, batch=SAMPLES, dynamic=False)
    known = {role: role for role in graph.inputs}
    programs = {
        name: Program(
            inputs={role: role for role in known if graph.takes(name, role)},
            outputs={role: role for program, role in graph.outputs if program == name},
        )
        for name in ("train", "eval")
    }
    manifest = Manifest(
        purpose="training",
        runtime=runtime,
        model=spec.name,
        shape=shape,
        classes=3,
        digest="0" * 64,
        opset="none",
        batch=SAMPLES,
        tensors=source.tensors,
        masks=source.masks,
        programs=programs,
    )

    def run(program: str, inputs: dict[str, object]) -> dict[str, object]:
        fed = [torch.from_numpy(inputs[role]) for role in graph.inputs]
        results = dict(zip(graph.outputs, graph.module(*fed), strict=True))
        return {role: value.numpy() for (name, role), value in results.items() if name == program}

    differences = [greatest_difference(run, spec, manifest, seed=seed) for seed in range(2)]
    assert min(difference.share for difference in differences) <= TOLERANCE


def test_dropouts_mask_is_what_the_layer_multiplies_by() -> None:
    spec = _model(lambda: [nn.Linear(3, 4), nn.Dropout(0.5)])
    with quiet():
        source = open_source(spec, shape=(3,), classes=2, runtime="onnx")
        graph = trace(source, ["train"], runtime="onnx", batch=SAMPLES, dynamic=False)
    fed = dict(zip(graph.inputs, graph.example, strict=True))
    fed["x"] = torch.ones(SAMPLES, 3)
    fed["mask:0.1"] = torch.tensor([0.0, 2.0, 0.0, 2.0]).repeat(SAMPLES, 1)
    gradients = dict(zip(graph.outputs, graph.module(*fed.values()), strict=True))
    by_row = gradients["train", "gradient:0.0.weight"].abs().sum(1)
    assert [bool(amount) for amount in by_row] == [False, True, False, True]


def test_no_operator_of_a_tflite_step_scatters_or_transposes_a_convolution() -> None:
    shape, layers = CASES["pooled, windows overlap"]
    source = open_source(_model(layers), shape=shape, classes=3, runtime="tflite")
    graph = trace(source, ["train"], runtime="tflite", batch=SAMPLES, dynamic=False)
    nodes = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    assert not [node for node in nodes if "scatter" in str(node.target) or "backward" in str(node.target)]
    convolutions = [node for node in nodes if str(node.target) == "aten.convolution.default"]
    assert convolutions
    assert not [node for node in convolutions if node.args[6]]


def _model(layers: Layers) -> ModelSpec:
    def build(shape: tuple[int, ...], classes: int) -> nn.Module:
        body = nn.Sequential(*layers(), nn.Flatten())
        width = body.eval()(torch.zeros(2, *shape)).shape[1]
        return nn.Sequential(body, nn.Linear(width, classes))

    return ModelSpec("cased", "one kind of layer", build)
