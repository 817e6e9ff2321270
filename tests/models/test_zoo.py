"""The models: their sizes, what they take, and that nothing heavy is imported until they are built."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.registry import BUILT_IN, find_model, require_fit
from trellis.errors import InvalidInput

ROOT = Path(__file__).parents[2]
DOCUMENTED = {
    "resnet8": ((3, 32, 32), 10),
    "mobile-cnn": ((3, 32, 32), 10),
    "sensor-cnn": ((6, 128), 6),
}
"""Sample and classes for which a model's docstring counts, where they are not MNIST's."""


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
        # input, new gate and reset, update: weights and two biases each
        ("gru", 3 * (28 * 32 + 32 * 32 + 32 + 32) + (32 * 10 + 10)),
    ],
)
def test_a_model_has_as_many_parameters_as_its_paper_says(name: str, derivation: int) -> None:
    literal = {"lenet5": 61_706, "convnet": 21_840, "mlp": 199_210, "softmax": 7_850, "gru": 6_282}[name]
    assert _parameters(name, (1, 28, 28), 10) == derivation == literal


def test_resnet8_has_three_blocks_of_two_convolutions_and_two_shortcuts() -> None:
    first = 3 * 16 * 9 + 32
    blocks = [
        (inputs * outputs + outputs * outputs) * 9
        + 4 * outputs
        + (inputs * outputs if inputs != outputs else 0)
        for inputs, outputs in ((16, 16), (16, 32), (32, 64))
    ]
    assert _parameters("resnet8", (3, 32, 32), 10) == first + sum(blocks) + (64 * 10 + 10) == 77_850


def test_mobile_cnn_has_depthwise_and_pointwise_kernels() -> None:
    separable = [
        inputs * 9 + 2 * inputs + inputs * outputs + 2 * outputs
        for inputs, outputs in ((16, 32), (32, 64), (64, 64), (64, 128))
    ]
    first = 3 * 16 * 9 + 32
    assert _parameters("mobile-cnn", (3, 32, 32), 10) == first + sum(separable) + (128 * 10 + 10) == 19_114


def test_sensor_cnn_reads_windows_along_time() -> None:
    kernels = (6 * 32 * 5 + 32) + (32 * 32 * 5 + 32)
    assert _parameters("sensor-cnn", (6, 128), 6) == kernels + (32 * 32 * 64 + 64) + (64 * 6 + 6) == 72_134


def test_the_counts_stand_in_every_models_docstring() -> None:
    for name, target in BUILT_IN.items():
        text = importlib.import_module(target.partition(":")[0]).__doc__ or ""
        shape, classes = DOCUMENTED.get(name, ((1, 28, 28), 10))
        assert f"{_parameters(name, shape, classes):,} parameters" in text, name


@pytest.mark.parametrize(
    ("name", "fitting", "too_small"),
    [
        ("resnet8", (3, 8, 8), (3, 7, 8)),
        ("mobile-cnn", (1, 8, 8), (8, 8)),
        ("sensor-cnn", (1, 4), (6, 3)),
        ("gru", (1, 5, 3), (3, 5, 3)),
    ],
)
def test_the_smallest_sample_of_the_other_models(
    name: str, fitting: tuple[int, ...], too_small: tuple[int, ...]
) -> None:
    spec = find_model(name)
    assert tuple(spec.build(fitting, 4)(torch.zeros(2, *fitting)).shape) == (2, 4)
    assert spec.misfit(too_small) != ""


def test_a_gru_reads_the_rows_of_a_picture_as_steps() -> None:
    torch.manual_seed(0)
    module = find_model("gru").build((4, 3), 2)
    rows = torch.randn(5, 4, 3)
    assert torch.equal(module(rows), module(rows[:, None]))


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
        "least 12×12 (models that fit: gru, mlp, mobile-cnn, resnet8, softmax)"
    )


def test_a_flat_sample_fits_only_the_models_that_flatten() -> None:
    require_fit(find_model("softmax"), (14,))
    with pytest.raises(InvalidInput, match=r"samples have shape \(14,\)"):
        require_fit(find_model("convnet"), (14,))


def test_importing_any_module_of_models_loads_no_heavy_package() -> None:
    # The modules that are a runtime's own and loaded when it is asked for, and the exporters.
    own = {f"backends/{name}.py" for name in ("torch", "torch_randomness", "onnx", "tflite")}
    own |= {f"quantization/{name}.py" for name in ("onnx", "tflite")}
    light = {"export/__init__.py", "export/command.py", "export/quiet.py"}
    paths = [path.relative_to(ROOT / "models").as_posix() for path in (ROOT / "models").rglob("*.py")]
    kept = [path for path in paths if path not in own and (path in light or not path.startswith("export/"))]
    modules = [
        ".".join(("models", *Path(path).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(kept)
    ]
    assert {"models", "models.backends", "models.zoo.lenet5", "models.command", "models.export"} <= set(
        modules
    )
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
