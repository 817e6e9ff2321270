"""`trellis model evaluate` and `trellis model list`, by the command line itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models import command
from models.artefacts import ModelCard, save_model
from models.backends import TrainPlan, open_backend
from models.command import app
from models.datasets import Normalize, load, scale
from models.registry import ModelSpec, find_model
from trellis.errors import DataError, InvalidInput, TrellisError

NORMALIZE = Normalize(0.3, 0.4)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    backend = open_backend("torch", "softmax", shape=(1, 8, 8), classes=10, seed=0)
    train = scale(load("digits", split="train"), NORMALIZE)
    plan = TrainPlan(epochs=5, steps=None, batch_size=16, learning_rate=0.05)
    arrays = backend.train(backend.initial(), train, plan, np.random.default_rng(0)).arrays
    save_model(path, arrays, ModelCard("softmax", (1, 8, 8), 10, "digits-1", 7, NORMALIZE).metadata())
    return path


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, TrellisError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_model_file_is_evaluated_on_the_test_split(model_file: Path) -> None:
    found = json.loads(_run("evaluate", str(model_file), "--data", "digits", "--json"))
    assert found["accuracy"] >= 0.9
    assert found["loss"] < 0.5
    rest = {"model": "softmax", "task": "digits-1", "round": 7, "data": "digits", "samples": 360}
    assert {field: found[field] for field in rest} == rest


def test_the_same_is_said_to_people(model_file: Path) -> None:
    lines = _run("evaluate", str(model_file), "--data", "digits").splitlines()
    assert lines[0] == "softmax, task digits-1, round 7, on 360 test samples of digits:"
    assert float(lines[1].removeprefix("accuracy")) >= 0.9
    assert lines[2].startswith("loss  ")


def test_data_that_do_not_fit_the_model_are_refused(model_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x_test=np.zeros((2, 28, 28), np.uint8), y_test=np.array([0, 11]))
    with pytest.raises(DataError) as caught:
        _run("evaluate", str(model_file), "--data", str(tmp_path / "other.npz"))
    assert str(caught.value) == (
        "data set 'other': 2 faults\n"
        "  - data.shape: samples have shape (1, 28, 28), the model wants (1, 8, 8)\n"
        "  - data.classes: labels run from 0 to 11, the model wants 0 to 9"
    )


def test_a_file_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "bare.safetensors", {"w": np.ones(2, np.float32)}, {})
    with pytest.raises(DataError, match=r"its metadata: .*\n  - model: is missing"):
        _run("evaluate", str(tmp_path / "bare.safetensors"), "--data", "digits")


def test_models_are_listed_with_their_size_and_whether_they_fit() -> None:
    listed = {model["model"]: model for model in json.loads(_run("list", "--json"))}
    sizes = {name: listed[name]["parameters"] for name in ("convnet", "lenet5", "mlp", "softmax")}
    assert sizes == {"convnet": 21_840, "lenet5": 61_706, "mlp": 199_210, "softmax": 7_850}
    small = {model["model"]: model for model in json.loads(_run("list", "--shape", "1,8,8", "--json"))}
    assert {name: small[name]["fits"] for name in sizes} == {
        "convnet": False,
        "lenet5": False,
        "mlp": True,
        "softmax": True,
    }
    assert small["convnet"]["problem"] == "wants (channels, height, width) of at least 16×16"


def test_without_torch_models_are_listed_without_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    listed = {model["model"]: model for model in json.loads(_run("list", "--json"))}
    assert (listed["mlp"]["parameters"], listed["mlp"]["fits"]) == (None, True)


def test_a_model_that_cannot_be_built_is_listed_with_what_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> Any:
        return {}["layers"]

    def find(name: str) -> ModelSpec:
        return ModelSpec(name, "", build) if name == "mlp" else find_model(name)

    monkeypatch.setattr(command, "find_model", find)
    listed = {model["model"]: model for model in json.loads(_run("list", "--json"))}
    assert (listed["mlp"]["fits"], listed["mlp"]["problem"]) == (False, "KeyError: 'layers'")
    assert listed["softmax"]["fits"]


def test_the_list_for_people_has_a_line_a_model() -> None:
    lines = _run("list").splitlines()
    assert lines[0].split() == ["MODEL", "PARAMETERS", "FITS", "DESCRIPTION"]
    assert any(line.split()[:3] == ["mlp", "199,210", "yes"] for line in lines)


@pytest.mark.parametrize("shape", ["", "1,x", "0,28", "1,,2"])
def test_a_shape_that_is_none_is_refused(shape: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"options: shape: .* came, whole numbers above 0 with commas between"
    ):
        _run("list", "--shape", shape)


@pytest.mark.parametrize("command", ["evaluate", "list"])
def test_every_command_has_an_example(command: str) -> None:
    assert f"trellis model {command} " in _run(command, "--help")
