"""`trellis export`, by the command line itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from exported_models import LONGEST_S
from typer.testing import CliRunner

from models.artefacts import ModelCard, save_model
from models.backends import open_backend
from models.datasets import Normalize
from models.export.command import app
from models.exported import read_artefact
from trellis.errors import InvalidInput, Refused, TrellisError

# A converter is slow on a busy machine.
pytestmark = pytest.mark.timeout(LONGEST_S)

TRAIN = ("--format", "onnx", "--for", "training")
PREDICT = ("--format", "onnx", "--for", "inference")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    arrays = open_backend("torch", "softmax", shape=(1, 8, 8), classes=10, seed=0).initial()
    card = ModelCard("softmax", (1, 8, 8), 10, "digits-1", 7, Normalize(0.3, 0.4))
    save_model(path, arrays, card.metadata())
    return path


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, TrellisError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_model_by_name_becomes_a_file_that_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = json.loads(_run("softmax", "--shape", "1,8,8", "--classes", "10", *TRAIN, "--json"))
    path = tmp_path / "softmax-training.onnx"
    content = path.read_bytes()
    assert said["file"] == path.name
    assert (said["bytes"], said["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    manifest = read_artefact(path, runtime="onnx", purpose="training").manifest
    assert said["manifest"] == json.loads(manifest.to_json())
    assert (manifest.model, manifest.shape, manifest.classes) == ("softmax", (1, 8, 8), 10)


def test_a_runs_model_is_exported_with_its_weights_and_its_scaling(model_file: Path) -> None:
    path = model_file.with_name("digits.onnx")
    text = _run(str(model_file), *PREDICT, "-o", str(path))
    assert text.startswith(f"{path}: softmax for inference, ai.onnx 18, a batch of any size\n")
    manifest = read_artefact(path, runtime="onnx", purpose="inference").manifest
    assert manifest.normalize is not None
    assert (manifest.normalize.mean, manifest.normalize.std) == (0.3, 0.4)


def test_a_runs_model_can_be_trained_further(model_file: Path) -> None:
    path = model_file.with_name("further.onnx")
    _run(str(model_file), *TRAIN, "-o", str(path))
    assert read_artefact(path, runtime="onnx", purpose="training").manifest.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "due"),
    [
        (
            ("lenet5", *TRAIN),
            "options: 2 faults\n  - shape: is missing (the shape of a sample, such as 1,28,28)",
        ),
        (("lenet5", *TRAIN, "--shape", "1;28", "--classes", "2"), "options: shape: '1;28' came"),
        (("lenet5", *PREDICT), "options: MODEL: 'lenet5' came, a trained model's file is due"),
        (("gone.safetensors", *PREDICT), "model file 'gone.safetensors': no such file"),
        (
            ("lenet5", *TRAIN, "--shape", "1,8,8", "--classes", "9"),
            "model 'lenet5': data.shape: samples have",
        ),
        (
            ("mlp", *TRAIN, "-o", "nowhere/m.onnx"),
            "--output 'nowhere/m.onnx': folder 'nowhere' does not exist",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_field_and_the_remedy(arguments: tuple[str, ...], due: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _run(*arguments)
    assert str(caught.value).startswith(due)
    assert caught.value.exit_code == 2


def test_a_file_says_its_own_sizes(model_file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"classes: 4 came, .* says it by itself \(leave it out\)"):
        _run(str(model_file), *TRAIN, "--classes", "4")


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="did you mean 'lenet5'") as caught:
        _run("lenet", *TRAIN, "--shape", "1,8,8", "--classes", "2", "-o", str(tmp_path / "x.onnx"))
    assert caught.value.exit_code == 2
    # Before anything that follows from its name.
    with pytest.raises(Refused, match="did you mean 'lenet5'"):
        _run("zoo/lenet5", *TRAIN)
