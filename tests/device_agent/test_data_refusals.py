"""Every refusal of a device about its own data: what it says, and that machines see the code `data`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_user import nobody
from PIL import Image

from device_agent.eligibility import reason_of, require_data
from device_agent.service import own_data
from device_agent.settings import DataSource
from models.datasets import Dataset
from trellis.descriptor import TaskDescriptor
from trellis.errors import DataError, MissingExtra

MakeTask = Callable[..., TaskDescriptor]
X = np.zeros((20, 4), np.float32)
Y = np.arange(20) % 3


def _reason(error: DataError) -> str:
    reason = reason_of(error)
    assert (reason.code, error.exit_code) == ("data", 2)
    return reason.message


def _refusal(source: str, part: tuple[int, int] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        own_data(DataSource(source, part))
    return _reason(caught.value)


def _mismatch(task: TaskDescriptor, data: Dataset) -> str:
    with pytest.raises(DataError) as caught:
        require_data(task, data)
    return _reason(caught.value)


def _npz(folder: Path, name: str = "blobs.npz", **arrays: Any) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def test_data_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "blobs.npz"
    assert _refusal(str(path)) == (
        f"data set '{path}': no such file or folder; give digits, PATH or NAME=PATH"
    )
    assert f"data set '{path}'" in _refusal(f"blobs={path}")
    assert _refusal("digts").endswith("give digits, PATH or NAME=PATH; did you mean 'digits'?")


@pytest.mark.parametrize("name", ["blobs.npz", "blobs.csv", "images-idx3-ubyte", "blobs.csv.gz"])
def test_a_file_of_another_user(folder_of_all: Path, name: str) -> None:
    path = folder_of_all / name
    path.write_bytes(b"PK")
    path.chmod(0)
    with nobody():
        message = _refusal(str(path))
    assert message == f"data set '{path}': cannot be read: Permission denied (let this user read it)"


@pytest.mark.parametrize("inner", ["blobs.npz", "blobs.csv#income", "", "0"])
def test_a_folder_of_another_user(folder_of_all: Path, inner: str) -> None:
    folder = folder_of_all / "theirs"
    folder.mkdir()
    folder.chmod(0)
    with nobody():
        message = _refusal(str(folder / inner))
    assert "theirs" in message
    assert message.endswith("': cannot be read: Permission denied (let this user read it)")


def test_an_image_of_another_user(folder_of_all: Path) -> None:
    (folder_of_all / "0").mkdir()
    (folder_of_all / "0").chmod(0o755)
    Image.new("L", (2, 2)).save(folder_of_all / "0" / "a.png")
    (folder_of_all / "0" / "a.png").chmod(0)
    with nobody():
        message = _refusal(str(folder_of_all))
    assert message == (
        f"data set '{folder_of_all}': 0/a.png: cannot be read: Permission denied "
        "(let this device's user read it)"
    )


def test_a_name_that_no_file_can_have() -> None:
    assert re.fullmatch(r"data set 'x+': cannot be read: File name too long", _refusal("x" * 300))


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    path = tmp_path / "blobs.parquet"
    path.write_bytes(b"PAR1")
    assert _refusal(str(path)) == (
        f"data set '{path}': starts with the bytes b'PAR1', which is neither NPZ nor IDX, and its name does "
        "not end in .csv; write one with numpy.savez"
    )


def test_a_table_with_texts_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "blobs.csv"
    path.write_text("age,label\n1,0\n,1\n2,yes\n")
    assert _refusal(str(path)) == (
        f"data set '{path}': 2 faults\n"
        "  - line 3, column 'age': is empty, a number is due (fill it in, or remove the row)\n"
        "  - line 4, column 'label': label 'yes' came, a whole number from 0 is due "
        "(number the classes, on every device alike)"
    )


def test_a_table_that_has_a_header_alone(tmp_path: Path) -> None:
    (tmp_path / "blobs.csv").write_text("age,label\n")
    assert _refusal(str(tmp_path / "blobs.csv")) == f"data set '{tmp_path / 'blobs.csv'}': holds no samples"


def test_images_whose_folders_say_no_label(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    assert "folders are named 'cats', which does not say their labels" in _refusal(str(tmp_path))


def test_labels_that_are_no_whole_numbers(tmp_path: Path) -> None:
    path = _npz(tmp_path, x=X, y=Y / 2)
    assert _refusal(str(path)) == (
        f"data set '{path}': labels are float64; save them as whole numbers from 0"
    )


def test_labels_that_are_not_as_many_as_the_samples(tmp_path: Path) -> None:
    path = _npz(tmp_path, x=X, y=Y[:7])
    assert _refusal(str(path)) == f"data set '{path}': x has 20 samples, y has 7 labels; they must be as many"


def test_data_without_training_samples(tmp_path: Path) -> None:
    path = _npz(tmp_path, x_test=X, y_test=Y)
    due = "has no train samples (x_train and y_train, train-* or train/)"
    assert _refusal(str(path)) == f"data set '{path}': {due}"


def test_data_without_any_samples(tmp_path: Path) -> None:
    path = _npz(tmp_path, x_train=X[:0], y_train=Y[:0])
    assert _refusal(str(path)) == f"data set '{path}': holds no samples"


def test_fewer_samples_than_parts(tmp_path: Path) -> None:
    path = _npz(tmp_path, x_train=X, y_train=Y)
    assert _refusal(str(path), (3, 21)) == "data set 'blobs': holds 20 samples, too few for 21 parts"


def test_the_extra_that_images_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "0" / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra) as caught:
        own_data(DataSource(str(tmp_path)))
    assert reason_of(caught.value).code == "extra"
    assert caught.value.exit_code == 2


def test_data_of_another_name(make_task: MakeTask, tmp_path: Path) -> None:
    path = _npz(tmp_path, "cats.npz", x_train=X, y_train=Y)
    assert _mismatch(make_task(), own_data(DataSource(str(path)))) == (
        "data set 'cats': data.name: holds 'cats', the task wants 'blobs' "
        "(if it is the right data, name it: --data blobs=PATH)"
    )
    require_data(make_task(), own_data(DataSource(f"blobs={path}")))


def test_samples_of_another_shape(make_task: MakeTask) -> None:
    held = Dataset("blobs", np.zeros((20, 2, 2), np.float32), Y, 3)
    assert _mismatch(make_task(), held) == (
        "data set 'blobs': data.shape: samples have shape (2, 2), the task wants (4,)"
    )


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range(make_task: MakeTask, label: int) -> None:
    y = Y.copy()
    y[5] = label
    low, high = min(0, label), max(2, label)
    assert _mismatch(make_task(), Dataset("blobs", X, y, 4)) == (
        f"data set 'blobs': data.classes: labels run from {low} to {high}, the task wants 0 to 2"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(make_task: MakeTask, tmp_path: Path, value: float) -> None:
    x = X.copy()
    x[[4, 9], 1] = value
    held = own_data(DataSource(str(_npz(tmp_path, x_train=x, y_train=Y))))
    assert _mismatch(make_task(), held) == (
        "data set 'blobs': data: 2 samples hold NaN or infinity, the first is number 4"
    )


def test_too_few_samples(make_task: MakeTask) -> None:
    assert _mismatch(make_task(), Dataset("blobs", X[:9], Y[:9], 3)) == (
        "data set 'blobs': data.min_samples: holds 9 samples, the task wants at least 10"
    )


def test_every_miss_is_named_with_the_tasks_instructions(make_task: MakeTask) -> None:
    demands = {"name": "blobs", "shape": [5], "classes": 2, "min_samples": 30, "instructions": "ask Kim"}
    assert _mismatch(make_task(data=demands), Dataset("blobs", X, Y, 3)) == (
        "data set 'blobs' (the task's instructions: ask Kim): 3 faults\n"
        "  - data.shape: samples have shape (4,), the task wants (5,)\n"
        "  - data.classes: labels run from 0 to 2, the task wants 0 to 1\n"
        "  - data.min_samples: holds 20 samples, the task wants at least 30"
    )
