"""The benchmarks run with their smallest options and write what they promise; no figure is judged here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
import trained_files

from trellis.processes import die_with_parent

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "FEDERATION_UNDER_MEASUREMENT"


def started(script: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "temporary").mkdir()
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run that dies must leave nothing behind.
        preexec_fn=die_with_parent,  # noqa: PLW1509 - made for this: it allocates nothing
    )


def rows(script: str, folder: Path, *arguments: str, timeout_s: float = 280.0) -> list[dict[str, Any]]:
    file = folder / "rows.json"
    process = started(script, folder, *arguments, "--json", str(file))
    try:
        out, _ = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, out
    assert residue(folder) == []
    written = json.loads(file.read_text())
    assert list(written) == ["rows"]
    found: list[dict[str, Any]] = written["rows"]
    return found


def residue(folder: Path) -> list[str]:
    """Return the processes and temporary files that a benchmark has left."""
    temporary = str(folder / "temporary")
    left = [
        f"process {process.pid}"
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get(MARK, "").startswith(temporary)
    ]
    return left + [path.name for path in (folder / "temporary").iterdir()]


SCRIPTS = (
    "front",
    "round_overhead",
    "round_profile",
    "footprint",
    "recovery",
    "hierarchy",
    "hierfavg",
    "runtimes",
    "quantization",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_explains_itself(script: str, tmp_path: Path) -> None:
    process = started(f"{script}.py", tmp_path, "--help")
    out, _ = process.communicate(timeout=110)
    assert process.returncode == 0, out
    assert "--json" in out
    assert f"python benchmarks/{script}.py" in out


def test_make_bench_runs_them_all_but_the_ones_that_take_long_or_take_apart() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nbench:")[2].partition("\n\n")[0]
    run = re.findall(r"python benchmarks/([a-z_]+)\.py", recipe)
    assert sorted(run) == sorted(set(SCRIPTS) - {"hierfavg", "round_profile"})


def test_an_unknown_federation_is_named(tmp_path: Path) -> None:
    process = started("round_overhead.py", tmp_path, "--only", "trellis,flowers")
    out, _ = process.communicate(timeout=110)
    assert process.returncode == 2
    assert "there is no flowers; there is: flower-stock, trellis, flower-legacy" in out


@pytest.mark.parametrize("script", ["round_overhead", "hierarchy"])
@pytest.mark.parametrize("devices", ["x", "2,", "0", "2,-1", "1.5"])
def test_numbers_of_devices_that_are_none_are_a_usage_error(
    script: str, devices: str, tmp_path: Path
) -> None:
    process = started(f"{script}.py", tmp_path, "--devices", devices)
    out, _ = process.communicate(timeout=110)
    assert process.returncode == 2, out
    due = (
        f"argument --devices: {devices!r} came, whole numbers from 1 with commas between are due, such as 2,8"
    )
    assert out.rstrip().endswith(due)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_file_for_the_rows_that_cannot_be_written_is_told_before_anything_is_measured(
    script: str, tmp_path: Path
) -> None:
    process = started(f"{script}.py", tmp_path, "--json", "none/rows.json")
    out, _ = process.communicate(timeout=110)
    assert process.returncode == 2, out
    assert "argument --json: FILE 'none/rows.json': folder 'none' does not exist" in out


@pytest.mark.timeout(300)
def test_front_is_timed(tmp_path: Path) -> None:
    # A short name: the folder is called after it, and a Unix socket's path has 107 bytes at most.
    found = rows("front.py", tmp_path, "--repeats", "3")
    assert [row["exchange"] for row in found] == ["empty pull", "62 kB model", "10 MB model"]
    assert all(row["direct_ms_median"] > 0 and row["front_ms_median"] > 0 for row in found)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_rounds_of_trellis_and_of_the_legacy_server_are_timed(tmp_path: Path) -> None:
    found = rows(
        "round_overhead.py", tmp_path, "--devices", "1", "--rounds", "2", "--only", "trellis,flower-legacy"
    )
    assert [(row["federation"], row["devices"]) for row in found] == [("trellis", 1), ("flower-legacy", 1)]
    for row in found:
        assert 0 < row["round_s_min"] <= row["round_s_median"] <= row["round_s_max"]
        assert row["this_over_legacy"] > 0


@pytest.mark.long
@pytest.mark.timeout(400)
def test_rounds_of_stock_flower_are_timed(tmp_path: Path) -> None:
    (row,) = rows("round_overhead.py", tmp_path, "--devices", "1", "--rounds", "2", "--only", "flower-stock")
    assert (row["federation"], row["rounds"]) == ("flower-stock", 1)
    assert row["round_s_median"] > 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_round_is_traced_to_its_requests(tmp_path: Path) -> None:
    found = rows("round_profile.py", tmp_path, "--devices", "1", "--rounds", "4")
    a_round = {(row["who"], row["what"]): row["a_round"] for row in found}
    assert a_round[("device d0", "POST /v1/fleet/push-messages")] == 1
    assert a_round[("ServerApp", "POST /v1/runtime/push-messages")] == 1


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_device_is_weighed(tmp_path: Path) -> None:
    found = rows("footprint.py", tmp_path, "--window", "3", "--waiting", "3", "--rounds", "1")
    by_figure = {row["figure"]: row for row in found}
    assert all(row.keys() == {"figure", "value", "unit", "target", "note"} for row in found)
    assert by_figure["memory at rest"]["value"] < by_figure["memory in training"]["value"]
    # 21,840 float32 each way, and what frames them.
    assert 1.0 < by_figure["wire up"]["value"] < 2.0
    assert 1.0 < by_figure["wire down"]["value"] < 2.0
    assert by_figure["idle: HTTP requests"]["value"] == 0


@pytest.mark.long
@pytest.mark.timeout(300)
def test_every_process_recovers(tmp_path: Path) -> None:
    found = rows("recovery.py", tmp_path, "--repeats", "1", "--devices", "1")
    assert [row["process"] for row in found] == ["device", "gateway", "server-up", "server", "broker"]
    assert all(0 < row["recovery_s_median"] <= row["recovery_s_max"] for row in found)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_flat_and_regional_rounds_are_compared(tmp_path: Path) -> None:
    options = ("--devices", "4", "--regions", "2", "--rounds", "1", "--counted", "1")
    flat, regional = rows("hierarchy.py", tmp_path, *options, timeout_s=380)
    figures = {"round_s_median", "centre_cpu_s_per_round", "centre_rss_mb", "gateway_rss_mb"}
    counts = {"centre_bytes_per_round", "centre_requests_per_round"}
    assert flat.keys() == regional.keys() == {"tier", "devices", "regions"} | figures | counts
    assert [(row["tier"], row["devices"], row["regions"]) for row in (flat, regional)] == [
        ("central", 4, 2),
        ("regional", 4, 2),
    ]
    assert all(row[name] > 0 for row in (flat, regional) for name in figures | counts)
    # Two gateways ask and answer instead of four devices, and each has a SuperLink and an app.
    assert regional["centre_bytes_per_round"] < 0.7 * flat["centre_bytes_per_round"]
    assert regional["centre_requests_per_round"] < flat["centre_requests_per_round"]
    assert regional["gateway_rss_mb"] > 2 * flat["gateway_rss_mb"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_averaging_in_regions_often_and_seldom_is_drawn(tmp_path: Path) -> None:
    # In the form of MNIST, but small, and nothing is to be learned from it.
    noise = {}
    for part, count in (("train", 1000), ("test", 100)):
        noise[f"x_{part}"] = np.random.default_rng(7).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        noise[f"y_{part}"] = np.arange(count) % 10
    np.savez(tmp_path / "noise.npz", **noise)
    options = ("--data", "noise.npz", "--rounds", "1", "--plot", "curves.svg")
    (row,) = rows("hierfavg.py", tmp_path, *options, timeout_s=380)
    assert row.keys() == {"round", "accuracy_1x60", "accuracy_10x6", "ahead_points"}
    assert row["ahead_points"] == pytest.approx(row["accuracy_10x6"] - row["accuracy_1x60"])
    drawing = ElementTree.parse(tmp_path / "curves.svg").getroot()  # noqa: S314 - we drew it
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_backend_is_weighed_and_timed(tmp_path: Path) -> None:
    options = ("--models", "softmax", "--steps", "3", "--repeats", "1")
    found = rows("runtimes.py", tmp_path, *options, timeout_s=580)
    assert [(row["backend"], row["model"]) for row in found] == [
        ("torch", "softmax"),
        ("onnx", "softmax"),
        ("tflite", "softmax"),
    ]
    figures = {"step_ms_median", "agent_rss_mb", "import_s", "installed_mb"}
    assert all(row.keys() == {"backend", "model", "artefact_bytes"} | figures for row in found)
    assert all(row[name] > 0 for row in found for name in figures)
    torch, *light = found
    assert torch["artefact_bytes"] is None
    for row in light:
        assert row["artefact_bytes"] > 0
        assert row["agent_rss_mb"] < 0.7 * torch["agent_rss_mb"]
        assert row["installed_mb"] < 0.7 * torch["installed_mb"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_fewer_bits_are_weighed(tmp_path: Path) -> None:
    digits = trained_files.write_digits(tmp_path / "digits.npz")
    found = rows("quantization.py", tmp_path, "--data", str(digits), "--epochs", "1")
    methods = ["float32", "fp16", "int8-dynamic", "int8-static"]
    named = [(row["runtime"], row["quantization"]) for row in found]
    assert named == [(runtime, method) for runtime in ("onnx", "tflite") for method in methods]
    whole = {row["runtime"]: row for row in found if row["quantization"] == "float32"}
    for row in found:
        other = whole[row["runtime"]]
        assert row["ratio"] == row["bytes"] / other["bytes"]
        assert row["points_lost"] == pytest.approx(other["accuracy"] - row["accuracy"])
        assert row["ms_per_sample"] > 0
    assert all(row["ratio"] < 1 for row in found if row["quantization"] != "float32")


@pytest.mark.timeout(300)
def test_an_interrupted_benchmark_leaves_nothing(tmp_path: Path) -> None:
    process = started("recovery.py", tmp_path, "--devices", "1")
    try:
        deadline = time.monotonic() + 120
        while len(residue(tmp_path)) < 4:  # its folder, the broker, and two more
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline, residue(tmp_path)
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()  # its processes end with it
            process.wait()
    assert process.returncode == 130, out
    assert out.endswith("stopped: nothing of the benchmark runs any more\n")
    assert residue(tmp_path) == []
