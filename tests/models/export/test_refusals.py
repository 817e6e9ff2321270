"""What cannot be exported is refused with the operator, the module it stands in, and what to do."""

from __future__ import annotations

from pathlib import Path

import graph_files
import pytest
import torch
from exported_models import LONGEST_S
from torch import nn
from torch.nn import functional

from models.export import export_training, parity
from models.manifest import Runtime
from models.registry import ModelSpec
from trellis.errors import InvalidInput

# A converter is slow on a busy machine.
pytestmark = pytest.mark.timeout(LONGEST_S)

REMEDY = "or train it on devices with the extra torch alone"


class Warped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turn = torch.eye(2, 3)[None].expand(x.shape[0], 2, 3)
        grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)


class Drops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, 0.5, self.training)


class Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Sorts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, -1).values


class CountsInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return x


class InDouble(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x.double()).float()


class FailsInTraining(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dict[str, torch.Tensor]()["logits"] if self.training else x


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spectrum", torch.zeros(3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class DropsAlongTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x.transpose(0, 2)).transpose(0, 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(8, 8), nn.Linear(8, 8)
        self.back.weight = self.there.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.there(x))


@pytest.mark.parametrize(
    ("odd", "runtime", "due"),
    [
        (Warped, "onnx", "module 'odd': onnx does not take its operator aten.grid_sampler_2d_backward"),
        (Warped, "tflite", "module 'odd': tflite does not take its operator aten.grid_sampler_2d_backward"),
        (Sorts, "tflite", "module 'odd': tflite does not take its operator sort"),
        (Drops, "onnx", "module 'odd': its operator aten.native_dropout.default draws at random"),
        (Decides, "tflite", "module 'odd': it cannot be written as one graph"),
        (InDouble, "onnx", "module 'odd': onnx does not take its operator erf: NotImplemented: "),
        (FailsInTraining, "tflite", "its export failed: KeyError: 'logits'"),
        (Complex, "onnx", "module 'odd': 'odd.spectrum': dtype: string should match pattern"),
        (CountsInside, "onnx", "module 'odd': training changes 'odd.seen', which is int64"),
        (
            DropsAlongTime,
            "onnx",
            "module 'odd.dropout': its dropout does not have the samples along the first",
        ),
        (Tied, "tflite", "'odd.back.weight' and 'odd.there.weight' are one parameter"),
    ],
)
def test_what_cannot_be_exported_names_operator_module_and_remedy(
    odd: type[nn.Module], runtime: Runtime, due: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as caught:
        export_training(_with(odd), shape=(1, 8, 8), classes=3, runtime=runtime, path=tmp_path / "odd")
    message = str(caught.value)
    assert message.startswith(f"model 'odd-one' cannot be exported to {runtime}: {due}"), message
    assert REMEDY in message
    assert list(tmp_path.iterdir()) == []


# It is built twice to be exported, then once for each of three draws that the file is held against.
@pytest.mark.parametrize(("others", "most"), [({3, 4, 5}, "1e-05"), ({5}, "1e-02")])
def test_a_file_that_says_other_than_pytorch_is_not_written(
    others: set[int], most: str, tmp_path: Path
) -> None:
    built = []

    def build(shape: tuple[int, ...], classes: int) -> nn.Module:
        built.append(shape)
        activation = nn.Sigmoid() if len(built) in others else nn.Tanh()
        return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, classes))

    path = tmp_path / "moody.onnx"
    path.write_bytes(b"what was there")
    with pytest.raises(
        InvalidInput, match=rf"program gives another .* than PyTorch: they differ by .*, at most {most}"
    ):
        export_training(ModelSpec("moody", "", build), shape=(4,), classes=3, runtime="onnx", path=path)
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"what was there")]


def _with(odd: type[nn.Module]) -> ModelSpec:
    def build(shape: tuple[int, ...], classes: int) -> nn.Module:
        net = nn.Sequential()
        net.add_module("first", nn.Conv2d(1, 1, 3, padding=1))
        net.add_module("odd", odd())
        net.add_module("flatten", nn.Flatten())
        net.add_module("last", nn.Linear(64, classes))
        return net

    return ModelSpec("odd-one", "one module that is odd", build)


def test_a_file_that_a_device_would_refuse_is_not_written(tmp_path: Path) -> None:
    looping = graph_files.onnx_model(manifest := graph_files.manifest("onnx"))
    looping.graph.node.add(op_type="Loop", name="l")
    path = graph_files.write_onnx(tmp_path / "tiny.onnx", looping)
    with pytest.raises(InvalidInput) as caught:
        parity.require_gradients(_with(Sorts), [], manifest, path)
    assert str(caught.value).startswith(
        "model 'tiny' cannot be exported to onnx: who uses it would refuse the file: node 'l' is the "
        "operator 'Loop', which may never end"
    )
