"""Which backends there are, which one is taken, and what a machine without them is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.backends import AUTO, artefact_runtime, available_backends, open_backend, resolve_backend
from models.backends.torch import TorchBackend
from trellis.errors import ArtefactError, ConfigError, MissingExtra

NAMES = ["torch", "onnx", "tflite"]
PACKAGES = {"torch": "torch", "onnx": "onnxruntime", "tflite": "ai_edge_litert"}


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make it a machine with those runtimes and no others."""
    packages = {PACKAGES[name] for name in names}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in packages else None)


def test_available_is_what_is_installed_the_preferred_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_backends() == NAMES
    only(monkeypatch, "tflite", "onnx")
    assert available_backends() == ["onnx", "tflite"]
    only(monkeypatch)
    assert available_backends() == []


@pytest.mark.parametrize(
    ("installed", "due"),
    [(NAMES, "torch"), (["tflite", "onnx"], "onnx"), (["tflite"], "tflite")],
)
def test_auto_takes_the_preferred_of_those_installed(
    installed: list[str], due: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_backend(AUTO, installed) == due
    only(monkeypatch, *installed)
    assert resolve_backend(AUTO) == due


def test_a_backend_that_is_named_is_taken_or_missed_by_its_extra() -> None:
    assert resolve_backend("tflite", NAMES) == "tflite"
    with pytest.raises(MissingExtra) as caught:
        resolve_backend("tflite", ["torch", "onnx"])
    assert str(caught.value) == "ai_edge_litert is not installed: pip install 'trellis-fl[tflite]'"
    with pytest.raises(ConfigError) as unknown:
        resolve_backend("torhc", NAMES)
    assert str(unknown.value) == "backend 'torhc': is not known; known are torch, onnx, tflite"


def test_auto_with_nothing_installed_names_what_to_install() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_backend(AUTO, [])
    assert str(caught.value) == (
        "backend 'auto': no training runtime is installed: pip install 'trellis-fl[torch]' or "
        "'trellis-fl[onnx]' or 'trellis-fl[tflite]'"
    )


def test_who_needs_an_artefact_says_of_which_runtime() -> None:
    assert [artefact_runtime(name) for name in NAMES] == [None, "onnx", "tflite"]
    with pytest.raises(ConfigError, match="is not known"):
        artefact_runtime("auto")


@pytest.mark.parametrize("name", NAMES)
def test_opening_what_is_not_installed_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    with pytest.raises(MissingExtra) as caught:
        open_backend(name, "mlp", shape=(4,), classes=3, seed=0)
    assert str(caught.value) == f"{PACKAGES[name]} is not installed: pip install 'trellis-fl[{name}]'"


def test_opening_a_backend_that_is_not_known_names_those_that_are() -> None:
    assert isinstance(open_backend("torch", "softmax", shape=(4,), classes=3, seed=0), TorchBackend)
    with pytest.raises(ConfigError, match="backend 'torhc': is not known; known are torch, onnx, tflite"):
        open_backend("torhc", "mlp", shape=(4,), classes=3, seed=0)


def test_torch_takes_no_artefact_and_nobody_no_threads_at_all(tmp_path: Path) -> None:
    path: Path = tmp_path / "any.onnx"
    with pytest.raises(ConfigError, match="backend 'torch': trains from the model's definition"):
        open_backend(NAMES[0], "softmax", shape=(4,), classes=3, seed=0, artefact=path)
    with pytest.raises(ConfigError, match="backend 'torch': 0 threads came, at least 1 is due"):
        open_backend("torch", "softmax", shape=(4,), classes=3, seed=0, threads=0)


def test_an_artefact_is_opened_up_to_the_size_that_is_allowed(tmp_path: Path) -> None:
    from graph_files import write_onnx  # noqa: PLC0415 - here alone

    path = write_onnx(tmp_path / "tiny.onnx")
    size = path.stat().st_size
    tiny = {"model": "tiny", "shape": (3,), "classes": 2, "seed": 0, "artefact": path}
    assert open_backend("onnx", **tiny, artefact_bytes=size).name == "onnx"
    with pytest.raises(ArtefactError, match=f"has {size} bytes, at most {size - 1} are due"):
        open_backend("onnx", **tiny, artefact_bytes=size - 1)


def test_torch_has_the_threads_that_it_is_given_and_its_own_number_otherwise() -> None:
    code = (
        "import torch; from models.backends import open_backend\n"
        "torch.set_num_threads(3); at = []\n"
        "for threads in (None, 2):\n"
        "    open_backend('torch', 'softmax', shape=(4,), classes=3, seed=0, threads=threads)\n"
        "    at.append(torch.get_num_threads())\n"
        "print(at)"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.stdout.strip(), ran.stderr) == ("[3, 2]", "")


def test_a_runtime_that_is_installed_but_does_not_load_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from graph_files import write_onnx  # noqa: PLC0415 - here alone

    def broken(_: str) -> None:
        raise ImportError("libc.so.6: version `GLIBC_2.28' not found")

    monkeypatch.setattr("importlib.import_module", broken)
    path = write_onnx(tmp_path / "tiny.onnx")
    with pytest.raises(ConfigError) as caught:
        open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=path)
    assert str(caught.value) == (
        "backend 'onnx': onnxruntime is installed, but cannot be imported: libc.so.6: version `GLIBC_2.28' "
        "not found (reinstall it: pip install --force-reinstall 'trellis-fl[onnx]')"
    )
