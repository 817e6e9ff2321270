"""Folders of images by class: `0/`, `1/`, … with PNG, JPEG or BMP files, perhaps under `train/` and `test/`.

Folders with other names need a `classes.txt` beside them, one name a line in the order of the labels: taken
from the folders that happen to be there, a name would get another label on a device that lacks a class.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.datasets.dataset import Samples
from models.datasets.stored import MAX_BYTES, MOST_FAULTS, Pair, Stored
from trellis.errors import DataError, Fault, MissingExtra

CLASSES_FILE = "classes.txt"

_FORMATS = ("PNG", "JPEG", "BMP")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_CHANNELS = {"L": 1, "RGB": 3}
_SPLITS = ("train", "test")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_MOST_PIXELS = 2**24  # of one image; a header may claim any size
_MOST_LISTED = 2**22  # bytes of classes.txt

# What Pillow raises at damaged bytes, besides its own errors, which are OSErrors.
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class _Image:
    """One file, as (channels, height, width) uint8."""

    path: Path
    pixels: Samples


def read_folder(folder: Path) -> Stored:
    """Return the images, x: (samples, channels, height, width) uint8, in the order of label and file name.

    Raises:
        DataError: The folders do not say which label they are, or images are broken, of another kind or not
            all of one size; up to ten files are named.
        MissingExtra: Pillow is not installed.
    """
    names = _class_names(folder)
    splits = [split for split in _SPLITS if (folder / split).is_dir()]
    if not splits:
        return Stored(whole=_pair(folder, names), classes=len(names or ()))
    others = [path.name for path in _folders(folder) if path.name not in _SPLITS]
    if others:
        problem = (
            f"holds {', '.join(splits)} and also {_listed(others)}; {' and '.join(splits)} alone are due"
        )
        raise DataError(f"data set {str(folder)!r}", problem)
    pairs = {split: _pair(folder / split, names) for split in splits}
    return Stored(train=pairs.get("train"), test=pairs.get("test"), classes=len(names or ()))


def holds_folders(folder: Path) -> bool:
    """Whether the folder may be one of images by class."""
    return any(_folders(folder))


def _pair(folder: Path, names: Mapping[str, int] | None) -> Pair:
    labels = _labels(folder, names)
    files = [(label, path) for label, classed in sorted(labels.items()) for path in sorted(_files(classed))]
    if not files:
        raise DataError(f"data set {str(folder)!r}", f"holds no images ({', '.join(_SUFFIXES)})")
    x = _stacked([path for _, path in files], folder)
    return Pair(x, np.array([label for label, _ in files], np.int64))


def _class_names(folder: Path) -> Mapping[str, int] | None:
    """Return each class's label as `classes.txt` has it, or None where there is no such file."""
    path = folder / CLASSES_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(_MOST_LISTED + 1)
    try:
        names = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"data set {str(path)!r}", f"is not UTF-8: {error}; save it as UTF-8") from error
    if len(content) > _MOST_LISTED or not names or len(set(names)) < len(names):
        repeated = sorted(name for name, times in Counter(names).items() if times > 1)
        came = f"names {_listed(repeated)} more than once" if repeated else f"has {len(content)} bytes"
        raise DataError(f"data set {str(path)!r}", f"{came}; one class a line is due, each once")
    return {name: label for label, name in enumerate(names)}


def _labels(folder: Path, names: Mapping[str, int] | None) -> dict[int, Path]:
    """Return each label's folder."""
    folders = _folders(folder)
    if names is None:
        unnumbered = [path.name for path in folders if not _NUMBER.fullmatch(path.name)]
        if unnumbered:
            problem = f"folders are named {_listed(unnumbered)}, which does not say their labels"
            remedy = f"rename them to 0, 1, ..., or list them in {CLASSES_FILE}, on every device alike"
            raise DataError(f"data set {str(folder)!r}", [Fault("", problem, remedy)])
        return {int(path.name): path for path in folders}
    unlisted = [path.name for path in folders if path.name not in names]
    if unlisted:
        problem = f"folders {_listed(unlisted)} are not in {CLASSES_FILE}, which names {_listed(list(names))}"
        raise DataError(f"data set {str(folder)!r}", problem)
    return {names[path.name]: path for path in folders}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):  # what file managers leave
            continue
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            problem = f"{path.name!r} is not one of {', '.join(_SUFFIXES)}; convert, move or remove it"
            raise DataError(f"data set {str(folder)!r}", problem)
        yield path


def _stacked(paths: list[Path], folder: Path) -> Samples:
    stack: Samples | None = None
    first: _Image | None = None
    faults: list[Fault] = []
    for number, path in enumerate(paths):
        image = _image(path, folder)
        if isinstance(image, Fault):
            faults.append(image)
        elif first is None or stack is None:
            first, stack = image, _room(len(paths), image, folder)
            stack[number] = image.pixels
        elif image.pixels.shape != first.pixels.shape:
            faults.append(_unlike(image, first, folder))
        else:
            stack[number] = image.pixels
        if len(faults) >= MOST_FAULTS:
            faults.append(Fault("", "the rest of the images were not looked at"))
            break
    if faults or stack is None:
        raise DataError(f"data set {str(folder)!r}", faults)
    return stack


def _room(samples: int, image: _Image, folder: Path) -> Samples:
    if (due := samples * image.pixels.nbytes) > MAX_BYTES:
        problem = f"{samples} images would take {due} bytes, the limit is {MAX_BYTES}"
        raise DataError(f"data set {str(folder)!r}", problem)
    return np.zeros((samples, *image.pixels.shape), np.uint8)


def _image(path: Path, folder: Path) -> _Image | Fault:
    try:
        # Imported here: no device but one that reads images needs Pillow.
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("pillow", "images") from error
    where = str(path.relative_to(folder))
    try:
        # Opening reads the header alone; Pillow itself refuses what is larger than its own limit.
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                return Fault(where, f"has {width}×{height} pixels, the limit is {_MOST_PIXELS}")
            if image.mode not in _CHANNELS:
                problem = f"has Pillow's mode {image.mode!r}, 'L' (grey) or 'RGB', 8 bits a channel, is due"
                return Fault(where, problem, "convert it, on every device alike")
            pixels = np.array(image, np.uint8).reshape(height, width, _CHANNELS[image.mode])
    except PermissionError as error:
        return Fault(where, f"cannot be read: {error.strerror}", "let this device's user read it")
    except (*_BROKEN, Image.DecompressionBombError) as error:
        return Fault(where, f"is not a PNG, JPEG or BMP image, or is broken: {error}", "replace or remove it")
    return _Image(path, np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _unlike(image: _Image, first: _Image, folder: Path) -> Fault:
    problem = f"is {_described(image)}, {_described(first)} is due, as {first.path.relative_to(folder)} is"
    return Fault(str(image.path.relative_to(folder)), problem, "make all images alike, on every device")


def _described(image: _Image) -> str:
    channels, height, width = image.pixels.shape
    return f"{width}×{height} {'grey' if channels == 1 else 'RGB'}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in itertools.islice(names, 10))
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
