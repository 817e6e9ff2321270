"""`trellis model evaluate` on the test split of every kind of source."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from models.artefacts import ModelCard, save_model
from models.command import app
from trellis.errors import DataError

# A softmax model on 2×2 grey images or 4 features that answers 1 where the first number is above one half.
WEIGHT = np.array([[-10, 0, 0, 0], [10, 0, 0, 0]], np.float32)
BIAS = np.array([5, -5], np.float32)

# 20 samples a class: of those without a test split 4 a class are held out.
Y = np.arange(40) % 2
X = np.zeros((40, 2, 2), np.uint8)
X[:, 0, 0] = Y * 255


def _npz(folder: Path) -> str:
    np.savez(folder / "toy.npz", x=X, y=Y)
    return str(folder / "toy.npz")


def _idx(folder: Path) -> str:
    for kind, array in (("images-idx3", X), ("labels-idx1", Y.astype(np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return f"toy={folder}"


def _csv(folder: Path) -> str:
    rows = [",".join(map(str, [*(x.ravel() / 255), y])) for x, y in zip(X, Y, strict=True)]
    (folder / "toy.csv").write_text("\n".join(["a,b,c,d,kind", *rows]))
    return f"{folder / 'toy.csv'}#kind"


def _images(folder: Path) -> str:
    for number, (x, y) in enumerate(zip(X, Y, strict=True)):
        (folder / str(y)).mkdir(exist_ok=True)
        Image.fromarray(x).save(folder / str(y) / f"{number}.png")
    return f"toy={folder}"


def _evaluate(folder: Path, shape: tuple[int, ...], data: str) -> dict[str, object]:
    model = folder / "model.safetensors"
    arrays = {"fc.weight": WEIGHT, "fc.bias": BIAS}
    save_model(model, arrays, ModelCard("softmax", shape, 2, "toy-1", 3, None).metadata())
    result = CliRunner().invoke(app, ["evaluate", str(model), "--data", data, "--json"])
    if isinstance(result.exception, DataError):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("write", "shape", "samples"),
    [(_npz, (1, 2, 2), 8), (_idx, (1, 2, 2), 40), (_csv, (4,), 8), (_images, (1, 2, 2), 8)],
)
def test_a_model_is_evaluated_on_every_kind_of_source(
    tmp_path: Path, write: Callable[[Path], str], shape: tuple[int, ...], samples: int
) -> None:
    (tmp_path / "data").mkdir()
    found = _evaluate(tmp_path, shape, write(tmp_path / "data"))
    assert (found["data"], found["accuracy"], found["samples"]) == ("toy", 1.0, samples)


def test_a_faulty_table_is_told_with_its_line(tmp_path: Path) -> None:
    source = _csv(tmp_path)
    with (tmp_path / "toy.csv").open("a") as file:
        file.write("\n1,2,,4,0")
    with pytest.raises(DataError, match="line 42, column 'c': is empty, a number is due"):
        _evaluate(tmp_path, (4,), source)
