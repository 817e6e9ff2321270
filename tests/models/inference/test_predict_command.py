"""`trellis predict` on real files, by the runtimes that they are for."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import graph_files
import numpy as np
import onnx
import pytest
import trained_files
from exported_models import LONGEST_S
from typer.testing import CliRunner

from models.predict_command import app
from trellis.errors import ArtefactError, ConfigError, DataError, InvalidInput, MissingExtra, TrellisError

# A converter is slow on a busy machine.
pytestmark = pytest.mark.timeout(LONGEST_S)

ROOT = Path(__file__).parents[3]
FILES = ("model.safetensors", "model.onnx", "model.tflite", "model-7.tflite")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds digits.npz, and one trained model in every format."""
    made = tmp_path_factory.mktemp("trained")
    digits = trained_files.write_digits(made / "digits.npz")
    trained = trained_files.train(made / FILES[0], digits)
    for name, batch in ((FILES[1], 1), (FILES[2], 1), (FILES[3], 7)):
        trained_files.export(trained, made / name, batch=batch)
    return made


def run(model: Path, data: Path, *more: str) -> str:
    result = CliRunner().invoke(app, ["--model", str(model), "--data", str(data), *more])
    if isinstance(result.exception, TrellisError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def found(folder: Path, name: str, *more: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run(folder / name, folder / "digits.npz", "--json", *more))
    return said


def test_every_format_of_a_model_gives_the_same_answers(folder: Path) -> None:
    by_file = {name: found(folder, name) for name in FILES}
    trained = by_file[FILES[0]]
    assert trained["accuracy"] >= 0.9
    for name, said in by_file.items():
        assert said["accuracy"] == trained["accuracy"]
        assert said["loss"] == pytest.approx(trained["loss"], rel=1e-5)
        assert said["ms_per_sample"] > 0
        rest = {"model": "lenet5", "quantization": None, "data": "digits", "samples": trained_files.SAMPLES}
        assert {field: said[field] for field in rest} == rest
        assert said["format"] == name.rpartition(".")[2]
    assert [said["batch"] for said in by_file.values()] == [1, 1, 1, 7]


def test_what_is_said_is_what_evaluate_says(folder: Path) -> None:
    from models.command import app as model_app  # noqa: PLC0415  # both modules call theirs app

    data = ["--data", str(folder / "digits.npz"), "--json"]
    evaluated = json.loads(CliRunner().invoke(model_app, ["evaluate", str(folder / FILES[0]), *data]).stdout)
    said = found(folder, FILES[0])
    assert said["accuracy"] == evaluated["accuracy"]
    assert said["loss"] == pytest.approx(evaluated["loss"], rel=1e-5)


def test_more_samples_a_call_change_no_answer(folder: Path) -> None:
    one, many = found(folder, FILES[1]), found(folder, FILES[1], "--batch", "100")
    assert many["batch"] == 100
    assert many["accuracy"] == one["accuracy"]
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_the_same_is_said_to_people(folder: Path) -> None:
    lines = run(folder / "model.onnx", folder / "digits.npz").splitlines()
    assert lines[0] == "lenet5 (onnx, float32) on 360 test samples of digits:"
    assert float(lines[1].removeprefix("accuracy")) >= 0.9
    assert lines[2].startswith("loss  ")
    assert lines[3].startswith("ms/sample  ")
    assert lines[3].endswith(", 1 a call, one thread")


def test_the_samples_are_of_the_split_that_was_asked_for(folder: Path) -> None:
    text = {
        split: run(folder / "model.onnx", folder / "digits.npz", "--split", split)
        for split in ("train", "all")
    }
    assert "on 1,437 training samples of digits:" in text["train"]
    assert "on 1,797 samples of digits:" in text["all"]
    assert found(folder, "model.onnx")["split"] == "test"
    assert found(folder, "model.onnx", "--split", "all")["samples"] == 1797


def test_twenty_samples_are_answered_to_once_all_are_asked_for(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "digits.npz") as stored:
        chosen = np.concatenate([np.flatnonzero(stored["y_test"] == label)[:2] for label in range(10)])
        np.savez(tmp_path / "few.npz", x=stored["x_test"][chosen], y=stored["y_test"][chosen])
    with pytest.raises(DataError, match="none of its 20 samples, labels 0 to 9, is left to test"):
        run(folder / "model.onnx", tmp_path / "few.npz")
    assert "on 20 samples of few:" in run(folder / "model.onnx", tmp_path / "few.npz", "--split", "all")


@pytest.mark.parametrize("name", ["model.onnx", "model-7.tflite"])
def test_every_prediction_is_written(name: str, folder: Path, tmp_path: Path) -> None:
    said = found(folder, name, "-o", str(tmp_path / "answers.csv"))
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with np.load(folder / "digits.npz") as stored:
        assert [int(row["label"]) for row in rows] == stored["y_test"].tolist()
    assert [int(row["sample"]) for row in rows] == list(range(trained_files.SAMPLES))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / len(rows) == said["accuracy"]
    # The greatest of ten that sum to 1.
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_a_light_runtime_needs_no_other(folder: Path) -> None:
    code = (
        "import sys\nfrom trellis.cli import main\n"
        "try: main()\n"
        "finally: print([n for n in ('torch', 'onnxruntime', 'ai_edge_litert') if n in sys.modules])"
    )
    for name, alone in (("model.onnx", "onnxruntime"), ("model.tflite", "ai_edge_litert")):
        arguments = ["predict", "--model", str(folder / name), "--data", str(folder / "digits.npz")]
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.stdout.splitlines()[-1] == f"[{alone!r}]", ran.stderr
        assert ran.stderr == "", "runtimes keep their notes to themselves"


@pytest.mark.parametrize(("suffix", "package"), [("onnx", "onnxruntime"), ("tflite", "ai_edge_litert")])
def test_a_runtime_that_is_not_installed_is_named(
    suffix: str, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtra) as caught:
        run(folder / f"model.{suffix}", folder / "digits.npz")
    assert str(caught.value) == f"{package} is not installed: pip install 'trellis-fl[{suffix}]'"


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "model.pt", tmp_path / "digits.npz")
    assert "its name ends in none of .onnx, .tflite, .safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "as_it_is"),
    [
        ("model.tflite", "model.onnx"),
        ("model.onnx", "model.safetensors"),
        ("model.safetensors", "model.tflite"),
    ],
)
def test_a_file_under_the_name_of_another_format_is_refused(
    name: str, as_it_is: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes((folder / as_it_is).read_bytes())
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / name, folder / "digits.npz")
    suffix, due = Path(name).suffix, Path(as_it_is).suffix
    assert str(caught.value).endswith(
        f"{name}': its name ends in {suffix}, its content is of a {due} file (rename it to model{due})"
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", ["onnx", "tflite", "safetensors"])
def test_what_is_no_file_is_refused_without_waiting(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pipe.{suffix}"
    os.mkfifo(path)
    with pytest.raises(InvalidInput, match=rf"pipe\.{suffix}': (is no file|no such file)"):
        run(path, tmp_path / "digits.npz")


def test_a_trained_model_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.inference.predictor.MAX_MODEL_BYTES", 10)
    with pytest.raises(ArtefactError, match=r"has \d+ bytes, at most 10 are due"):
        run(graph_files.write_onnx(tmp_path / "tiny.onnx"), tmp_path / "digits.npz")


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.ONNX"])
def test_a_training_artefact_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as caught:
        run(graph_files.write_onnx(tmp_path / name), tmp_path / "digits.npz")
    assert str(caught.value) == (
        f"artefact {name!r}: purpose: is 'training', 'inference' is due (export it with --for inference)"
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    content = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidInput, match=r"or a broken one|is no safetensors file"):
        run(tmp_path / name, folder / "digits.npz")


def test_an_operator_of_somebody_elses_is_refused(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.node[0].domain = "com.evil"
    model.opset_import.add(domain="com.evil", version=1)
    onnx.save(model, tmp_path / "evil.onnx")
    with pytest.raises(ArtefactError, match=r"com\.evil"):
        run(tmp_path / "evil.onnx", folder / "digits.npz")


def test_data_of_another_shape_are_refused(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(folder / "model.onnx", Path("digits"))
    assert "samples have shape (1, 8, 8)" in str(caught.value)


def test_a_folder_that_is_not_there_is_said_before_the_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        run(folder / "model.onnx", folder / "digits.npz", "-o", str(tmp_path / "none" / "answers.csv"))
