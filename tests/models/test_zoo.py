"""The four models: their sizes, what they take, and that nothing heavy is imported until they are built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.registry import find_model, require_fit
from trellis.errors import InvalidInput

ROOT = Path(__file__).parents[2]


def _parameters(name: str, shape: tuple[int, ...], classes: int) -> int:
    return sum(part.numel() for part in find_model(name).build(shape, classes).parameters())


@pytest.mark.parametrize(
    ("name", "derivation"),
    [
        # weights + biases by layer, on 1×28×28 and 10 classes
        (
            "lenet5",
            (1 * 6 * 25 + 6) + (6 * 16 * 25 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10),
        ),
        ("convnet", (1 * 10 * 25 + 10) + (10 * 20 * 25 + 20) + (320 * 50 + 50) + (50 * 10 + 10)),
        ("mlp", (784 * 200 + 200) + (200 * 200 + 200) + (200 * 10 + 10)),
        ("softmax", 784 * 10 + 10),
    ],
)
def test_a_model_has_as_many_parameters_as_its_paper_says(name: str, derivation: int) -> None:
    literal = {"lenet5": 61_706, "convnet": 21_840, "mlp": 199_210, "softmax": 7_850}[name]
    assert _parameters(name, (1, 28, 28), 10) == derivation == literal


@pytest.mark.parametrize("name", ["lenet5", "convnet", "mlp", "softmax"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 33, 29)])
def test_every_model_takes_pictures_of_28_and_more(name: str, shape: tuple[int, ...]) -> None:
    assert tuple(find_model(name).build(shape, 7)(torch.zeros(2, *shape)).shape) == (2, 7)


@pytest.mark.parametrize(("name", "side"), [("lenet5", 12), ("convnet", 16)])
def test_the_smallest_picture_is_where_the_layers_end(name: str, side: int) -> None:
    spec = find_model(name)
    assert tuple(spec.build((1, side, side), 10)(torch.zeros(2, 1, side, side)).shape) == (2, 10)
    assert spec.misfit((1, side - 1, side)) != ""


def test_a_model_that_does_not_fit_names_itself_the_shape_and_those_that_do() -> None:
    with pytest.raises(InvalidInput) as caught:
        find_model("lenet5").build((1, 8, 8), 10)
    assert str(caught.value) == (
        "model 'lenet5': data.shape: samples have shape (1, 8, 8), it wants (channels, height, width) of at "
        "least 12×12 (models that fit: mlp, softmax)"
    )


def test_a_flat_sample_fits_only_the_models_that_flatten() -> None:
    require_fit(find_model("softmax"), (14,))
    with pytest.raises(InvalidInput, match=r"samples have shape \(14,\)"):
        require_fit(find_model("convnet"), (14,))


def test_importing_any_module_of_models_loads_no_heavy_package() -> None:
    # The modules that are a runtime's own, and loaded when that backend is opened.
    lazy = [("backends", f"{name}.py") for name in ("torch", "onnx", "tflite")]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "models").rglob("*.py"))
        if path.parts[-2:] not in lazy
    ]
    assert {"models", "models.backends", "models.zoo.lenet5", "models.command"} <= set(modules)
    heavy = ("torch", "sklearn", "onnxruntime", "ai_edge_litert", "tensorflow", "jax", "scipy", "onnx")
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "from models import backends, registry\n"
        "backends.available_backends(); registry.model_names(); registry.find_model('mlp')\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")
