"""Model files: what is saved comes back, and never is half a file there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.artefacts import ModelCard, load_model, save_model
from models.backends import open_backend
from models.datasets import Normalize
from trellis.errors import DataError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
CARDS = st.builds(
    ModelCard,
    model=st.text(),
    shape=st.lists(st.integers(1, 14), min_size=1, max_size=8).map(tuple),  # 14**8 is below 2**31
    classes=st.integers(2, 10**6),
    task=st.text(),
    round=st.integers(0, 10**6),
    normalize=st.none() | st.builds(Normalize, FINITE, FINITE.filter(lambda std: std > 0)),
    seed=st.integers(0, 2**63 - 1),
)


@given(card=CARDS)
def test_a_card_is_its_metadata_and_back(card: ModelCard) -> None:
    assert ModelCard.from_metadata(card.metadata(), where="m") == card


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    arrays = open_backend("torch", "convnet", shape=(1, 28, 28), classes=10, seed=1).initial()
    arrays["counter"] = np.array(7, dtype=np.int64)
    arrays["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not C-contiguous
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, arrays, {"model": "convnet", "note": "größer"})
    loaded, metadata = load_model(path)
    assert metadata == {"model": "convnet", "note": "größer"}
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(loaded[name], array)
    loaded["counter"][...] = 8  # the caller's to change


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, {"w": np.ones(3, np.float32)}, {"round": "1"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(path, {"w": np.zeros(3, np.float32)}, {"round": "2"})
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_model(path)[1] == {"round": "1"}


def test_a_saved_model_may_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, {"w": np.ones(3, np.float32)}, {})
    assert oct(path.stat().st_mode & 0o777) == "0o644"


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(DataError) as caught:
        load_model(path)
    assert str(caught.value) == f"model file '{path}': no such file"
    for content in (b"", b"not a model", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no safetensors file"):
            load_model(path)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, "BF16"), (torch.float8_e4m3fn, "F8_E4M3")], ids=["bf16", "f8"]
)
def test_numbers_of_a_kind_that_numpy_has_not_are_refused(
    tmp_path: Path, dtype: torch.dtype, kind: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"fc.bias": torch.zeros(3), "fc.weight": torch.zeros(2, 3).to(dtype)}, path)
    with pytest.raises(DataError) as caught:
        load_model(path)
    assert str(caught.value) == (
        f"model file '{path}': tensor 'fc.weight': is {kind}, which numpy has not (save it as float32)"
    )


def test_they_are_refused_too_where_numpy_was_taught_the_kind(tmp_path: Path) -> None:
    import_module("ml_dtypes")  # as onnx does
    save_file({"fc.bias": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with pytest.raises(
        DataError, match=r"tensor 'fc.bias': is BF16, which numpy has not \(save it as float32\)"
    ):
        load_model(tmp_path / "model.safetensors")


def test_metadata_that_are_missing_are_all_named() -> None:
    with pytest.raises(DataError) as caught:
        ModelCard.from_metadata({"model": "mlp", "shape": "[4]", "classes": "3", "task": "t"}, where="m.st")
    assert str(caught.value) == (
        "model file 'm.st': its metadata: 2 faults\n  - round: is missing\n  - normalize: is missing"
    )


@pytest.mark.parametrize(
    ("field", "text", "problem"),
    [
        ("shape", "4", "shape: input should be a valid tuple, got 4"),
        ("shape", "x", "shape: Invalid JSON: expected value"),
        ("shape", "[" * 10_000, "shape: Invalid JSON: recursion limit exceeded"),
        ("shape", "[]", "shape: tuple should have at least 1 item"),
        ("shape", str([1] * 9), "shape: tuple should have at most 8 items"),
        ("shape", "[1, -8, 8]", r"shape\.1: input should be greater than or equal to 1, got -8"),
        ("shape", "[1, 100000, 100000]", "shape: 10000000000 numbers are no sample, at most 2147483647 are"),
        ("classes", "", "classes: input should be a valid integer"),
        ("classes", "-1", "classes: input should be greater than or equal to 2"),
        ("classes", "1000001", "classes: input should be less than or equal to 1000000"),
        ("normalize", '{"mean": 1}', r"normalize\.std: is missing"),
        ("normalize", '{"mean": 1, "std": 0}', r"normalize\.std: input should be greater than 0, got 0"),
        ("seed", "-1", "seed: input should be greater than or equal to 0, got"),
        ("seed", str(2**63), "seed: input should be less than or equal to 9223372036854775807"),
        ("normalize", "[", "normalize: Invalid JSON: EOF"),
    ],
)
def test_metadata_that_are_malformed_or_out_of_bounds_are_said(field: str, text: str, problem: str) -> None:
    sound = ModelCard("mlp", (4,), 3, "t", 1, Normalize(0.1, 0.3)).metadata()
    with pytest.raises(DataError, match=rf"^model file 'm\.st': its metadata: {problem}"):
        ModelCard.from_metadata({**sound, field: text}, where="m.st")
