"""Model files: what is saved comes back, and never is half a file there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.artefacts import ModelCard, load_model, save_model
from models.backends import open_backend
from models.datasets import Normalize
from trellis.errors import DataError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
CARDS = st.builds(
    ModelCard,
    model=st.text(),
    shape=st.lists(st.integers(1, 10**6), min_size=1, max_size=4).map(tuple),
    classes=st.integers(1, 10**6),
    task=st.text(),
    round=st.integers(0, 10**6),
    normalize=st.none() | st.builds(Normalize, FINITE, FINITE),
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


def test_metadata_that_are_missing_or_malformed_are_said() -> None:
    with pytest.raises(DataError) as caught:
        ModelCard.from_metadata({"model": "mlp", "shape": "[4]", "classes": "3", "task": "t"}, where="m.st")
    assert str(caught.value) == (
        "model file 'm.st': 2 faults\n"
        "  - round: is missing from the file's metadata\n"
        "  - normalize: is missing from the file's metadata"
    )
    sound = ModelCard("mlp", (4,), 3, "t", 1, Normalize(0.1, 0.3)).metadata()
    for field, text in (
        ("shape", "4"),
        ("shape", "x"),
        ("classes", ""),
        ("normalize", '{"mean": 1}'),
        ("normalize", "["),
    ):
        with pytest.raises(DataError, match=r"model file 'm\.st': its metadata are malformed: "):
            ModelCard.from_metadata({**sound, field: text}, where="m.st")
