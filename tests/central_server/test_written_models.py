"""The model that a task leaves behind is built again as it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import LONGEST_S
from torch import nn
from typer.testing import CliRunner

from central_server.rounds.evaluation import write_model
from models import backends, command, export
from models.backends import open_backend
from models.datasets import load, scale
from models.export import command as export_command
from models.inference import open_predictor
from models.registry import ModelSpec
from tests.central_server.parts import descriptor

# A converter is slow on a busy machine.
pytestmark = pytest.mark.timeout(LONGEST_S)

SEED = 42


class Projected(nn.Module):
    """A layer behind a projection that is no part of `state_dict()`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 10)
        self.register_buffer("projection", torch.randn(64, 16), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x.flatten(1) @ self.projection)
        return logits


def test_a_models_file_says_by_which_seed_it_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (backends, export):
        monkeypatch.setattr(
            module, "find_model", lambda _: ModelSpec("projected", "", lambda *_: Projected())
        )
    trained = open_backend("torch", "projected", shape=(1, 8, 8), classes=10, seed=SEED)
    arrays = trained.initial()
    task = descriptor(model={"name": "projected"}, train={"rounds": 1, "learning_rate": 0.1, "seed": SEED})
    path, exported = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    write_model(path, arrays, task, 1)
    data = scale(load("digits", split="test"), None)
    due = trained.predictor(arrays)(data.x)

    np.testing.assert_array_equal(open_predictor(path).logits(data.x), due)
    said = CliRunner().invoke(command.app, ["evaluate", str(path), "--data", "digits", "--json"])
    assert json.loads(said.stdout)["loss"] == pytest.approx(trained.evaluate(arrays, data).loss)
    what = ("--format", "onnx", "--for", "inference", "-o", str(exported))
    assert CliRunner().invoke(export_command.app, [str(path), *what]).exit_code == 0
    np.testing.assert_allclose(open_predictor(exported).logits(data.x), due, atol=1e-4)
