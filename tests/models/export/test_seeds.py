"""One artefact serves every task: what stands in it follows from no seed, and is what comes to be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import LONGEST_S
from torch import nn
from torch.nn import functional

from models.backends import TrainPlan, open_runtime
from models.backends.graph import GraphBackend
from models.backends.torch import open_model
from models.datasets import Dataset
from models.export import export_training
from models.exported import read_artefact
from models.registry import ModelSpec
from trellis.errors import InvalidInput, TensorError

# A converter is slow on a busy machine.
pytestmark = pytest.mark.timeout(LONGEST_S)


class Mixed(nn.Module):
    """A layer behind something of its own that is drawn while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x)
        return logits


class Permuted(Mixed):
    def __init__(self, order: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(4) if order is None else order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, self.order])


class Sparse(Mixed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.rand(3, 4) < 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.fc.weight * self.kept)


class Projected(Mixed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(4, 4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x @ self.projection)


class Noted(Mixed):
    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.noise)


class Scaled(Mixed):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(()).item()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.scale)


@pytest.mark.parametrize(
    ("drawn", "due"),
    [
        (
            Permuted,
            "module 'deep': 'deep.order', which is int64 and stands in the file itself, is",
        ),
        (Sparse, "module 'deep': 'deep.kept', which is bool and stands in the file itself, is"),
        (Projected, "module 'deep': 'deep.projection', which is float32 and stands in the file itself, is"),
        (
            Noted,
            "module 'deep': 'deep.noise', which is float32 and stands in the file itself, is",
        ),
        (Scaled, "it has a number in it, which stands in the file itself, that is another for every seed"),
    ],
)
def test_what_follows_from_the_seed_is_refused_where_it_would_stand_in_the_file(
    drawn: type[nn.Module], due: str, tmp_path: Path
) -> None:
    def build(_shape: tuple[int, ...], _classes: int) -> nn.Module:
        net = nn.Sequential()
        net.add_module("deep", drawn())
        return net

    with pytest.raises(InvalidInput) as caught:
        export_training(
            ModelSpec("drawn", "", build), shape=(4,), classes=3, runtime="onnx", path=tmp_path / "drawn.onnx"
        )
    assert str(caught.value).startswith(f"model 'drawn' cannot be exported to onnx: {due}")
    assert "(make it a float32 buffer, or the same for every seed, or train it" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_every_seed_trains_as_in_pytorch_and_no_other_is_taken_for_it(tmp_path: Path) -> None:
    def build(*_: Any) -> nn.Module:
        return Permuted(torch.tensor([3, 1, 0, 2]))

    path, spec = tmp_path / "permuted.onnx", ModelSpec("permuted", "", build)
    export_training(spec, shape=(4,), classes=3, runtime="onnx", path=path)
    artefact = read_artefact(path, runtime="onnx", purpose="training")
    rng = np.random.default_rng(7)
    data = Dataset("toy", rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 3, 8), 3)
    plan = TrainPlan(epochs=2, steps=None, batch_size=4, learning_rate=0.1)
    torchs = open_model(spec, shape=(4,), classes=3, seed=42)
    ours = GraphBackend(artefact.manifest, open_runtime(artefact))
    arrays = torchs.initial()
    due, came = (one.train(arrays, data, plan, np.random.default_rng(1)).arrays for one in (torchs, ours))
    np.testing.assert_allclose(came["fc.weight"], due["fc.weight"], atol=1e-6)
    arrays["order"] = arrays["order"][::-1].copy()
    problem = r"tensor 'order' has other numbers than stand in the artefact \(export the model anew\)"
    with pytest.raises(TensorError, match=problem):
        ours.train(arrays, data, plan, np.random.default_rng(1))
    with pytest.raises(TensorError, match=problem):
        ours.evaluate(arrays, data)
