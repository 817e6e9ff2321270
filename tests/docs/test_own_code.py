"""What the pages show of a user's own code is run: a model of one's own, and loading a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import ROOT, block, codes, read, table

from models.artefacts import ModelCard, save_model
from models.backends import open_backend
from models.registry import BUILT_IN, find_model
from trellis.descriptor import parse_mapping

README = read("README.md")
TASK = {
    "task": "t",
    "regions": ["eu-1"],
    "server": {"address": "127.0.0.1:8000", "tls": False},
    "model": {"name": "softmax"},
    "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
    "train": {"rounds": 2, "learning_rate": 0.1},
}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with what is installed in `folder` beside everything else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the README's package in it, as pip would install it."""
    folder = tmp_path / "site"
    project = tomllib.loads(block(README, "file: pyproject.toml"))
    name, version = project["project"]["name"], project["project"]["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    lines = [
        line
        for group, points in project["project"]["entry-points"].items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    for module in project["tool"]["setuptools"]["py-modules"]:
        (folder / f"{module}.py").write_text(block(README, f"file: {module}.py"), "utf-8")
    return folder


def test_a_model_of_ones_own_is_listed(site: Path) -> None:
    listed = python(site, "-m", "trellis", "model", "list", "--shape", "1,8,8", "--json")
    assert listed.returncode == 0, listed.stderr
    (own,) = [model for model in json.loads(listed.stdout) if model["model"] == "orchard-cnn"]
    # 16·1·3·3 + 16 of the convolution, 10·256 + 10 of the layer
    assert (own["fits"], own["parameters"]) == (True, 160 + 2570)


@pytest.mark.timeout(240)
def test_a_model_of_ones_own_is_trained_by_a_whole_federation(site: Path) -> None:
    assert parse_mapping(TASK | {"model": {"name": "orchard-cnn"}}).model.name == "orchard-cnn"
    size = ("--regions", "1", "--devices", "2", "--rounds", "1")
    done = python(site, "-m", "trellis", "demo", *size, "--model", "orchard-cnn", "--json", "summary.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((site / "summary.json").read_text("utf-8"))
    assert summary["rounds"] == 1
    assert {device["state"] for device in summary["devices"]} == {"SUCCEEDED"}
    shown = python(site, "-m", "trellis", "model", "evaluate", summary["model"], "--data", "digits", "--json")
    assert json.loads(shown.stdout)["model"] == "orchard-cnn"


def test_the_models_page_lists_the_zoo() -> None:
    listed = table(read("docs/models.md"), "zoo")
    assert {codes(row[0])[0] for row in listed} == set(BUILT_IN)
    for row in listed:
        shape, classes = row[4].removesuffix(" classes").split(", ")
        module = find_model(codes(row[0])[0]).build(tuple(map(int, shape.split("×"))), int(classes))
        assert row[3] == f"{sum(part.numel() for part in module.parameters()):,}"


def test_a_trained_model_is_loaded_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend("torch", "softmax", shape=(1, 8, 8), classes=10, seed=7)
    card = ModelCard(model="softmax", shape=(1, 8, 8), classes=10, task="digits", round=1)
    save_model(tmp_path / "digits.safetensors", backend.initial(), card.metadata())
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(block(read("docs/models.md"), "loading"), found)  # noqa: S102 - the page's own code
    for name, tensor in found["module"].state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), backend.initial()[name])
