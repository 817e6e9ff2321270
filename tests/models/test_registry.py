"""The registry, with packages that are really installed: a module and its dist-info on the path."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from models.backends import open_backend
from models.registry import find_model, model_names, models_that_fit
from trellis.errors import ConfigError, InvalidInput, Refused

_TINY = """
from models.registry import ModelSpec

def build(shape, classes):
    import math
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), {outputs}))

MODEL = ModelSpec({name!r}, "a stranger's", build)
"""


def _install(folder: Path, module: str, source: str, point: str, *, name: str | None = None) -> None:
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name or module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[trellis.models]\n{point}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_ours_are_known_without_being_installed() -> None:
    assert {"convnet", "lenet5", "mlp", "softmax"} <= set(model_names())
    assert find_model("mlp").name == "mlp"


def test_an_unknown_model_is_refused_with_the_nearest_and_all_known() -> None:
    with pytest.raises(Refused) as caught:
        find_model("lenet")
    assert caught.value.code == "model"
    message = str(caught.value)
    assert message.startswith("model 'lenet' is not known here: did you mean 'lenet5'? Known are ")
    assert "convnet, gru, lenet5, mlp, mobile-cnn, resnet8, sensor-cnn, softmax" in message


def test_an_installed_package_offers_a_model_that_trains(site: Path) -> None:
    _install(site, "offers_tiny", _TINY.format(name="tiny", outputs="classes"), "tiny = offers_tiny:MODEL")
    assert "tiny" in model_names()
    assert "tiny" in models_that_fit((1, 8, 8))
    backend = open_backend("torch", "tiny", shape=(1, 2, 2), classes=3, seed=0)
    assert {name: array.shape for name, array in backend.initial().items()} == {
        "1.weight": (3, 4),
        "1.bias": (3,),
    }


def test_a_broken_package_is_listed_and_fails_only_when_it_is_asked_for(site: Path) -> None:
    _install(
        site,
        "offers_broken",
        "import nowhere_to_be_found",
        "broken = offers_broken:MODEL",
        name="broken-models",
    )
    assert "broken" in model_names()
    assert "broken" not in models_that_fit((1, 28, 28))
    with pytest.raises(ConfigError) as caught:
        find_model("broken")
    assert str(caught.value) == (
        "model 'broken': its entry point 'offers_broken:MODEL' of broken-models failed: ModuleNotFoundError: "
        "No module named 'nowhere_to_be_found' (mend or uninstall broken-models)"
    )


def test_an_entry_point_that_is_no_model_is_an_error(site: Path) -> None:
    _install(site, "offers_text", "MODEL = 'text'", "text = offers_text:MODEL")
    with pytest.raises(ConfigError, match="model 'text': its entry point gives a str, not a ModelSpec"):
        find_model("text")


def test_the_names_of_entry_point_and_model_must_agree(site: Path) -> None:
    _install(
        site, "offers_other", _TINY.format(name="other", outputs="classes"), "alias = offers_other:MODEL"
    )
    with pytest.raises(ConfigError, match="model 'alias': its entry point gives the model 'other'"):
        find_model("alias")


def test_two_packages_with_one_name_are_an_error(site: Path) -> None:
    for module in ("offers_twin_a", "offers_twin_b"):
        _install(site, module, _TINY.format(name="twin", outputs="classes"), f"twin = {module}:MODEL")
    with pytest.raises(
        ConfigError, match=r"is offered more than once \(offers_twin_a:MODEL, offers_twin_b:MODEL\)"
    ):
        find_model("twin")


def test_a_package_cannot_take_a_name_of_ours(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    _install(site, "offers_mlp", _TINY.format(name="mlp", outputs="classes"), "mlp = offers_mlp:MODEL")
    with caplog.at_level(logging.WARNING):
        assert "McMahan" in find_model("mlp").describe
    assert "model mlp is built in: entry point offers_mlp:MODEL is ignored, rename it" in caplog.messages


def test_a_model_with_the_wrong_number_of_outputs_is_found_when_it_is_opened(site: Path) -> None:
    _install(
        site, "offers_wrong", _TINY.format(name="wrong", outputs="classes + 1"), "wrong = offers_wrong:MODEL"
    )
    with pytest.raises(InvalidInput) as caught:
        open_backend("torch", "wrong", shape=(1, 2, 2), classes=3, seed=0)
    due = "model 'wrong': gives shape (2, 4) for two samples of shape (1, 2, 2), (2, 3) is due"
    assert str(caught.value) == due
