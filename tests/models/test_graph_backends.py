"""Backends on exported graphs: the same steps as torch, and what they refuse.

The graph is softmax regression, written by hand: torch's `softmax` has the same parameters.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_files import manifest, onnx_model, write_onnx, write_tflite
from onnx import helper

from models.arrays import Arrays, copied
from models.backends import Backend, DefiningBackend, StepReport, TrainPlan, TrainResult, graph, open_backend
from models.backends.onnx import OnnxRuntime
from models.datasets import Dataset
from models.manifest import TensorEntry
from trellis.errors import ArtefactError, Canceled, ConfigError, DataError, TensorError, TrainingFailed

ROOT = Path(__file__).parents[2]
PLAN = TrainPlan(epochs=3, steps=None, batch_size=6, learning_rate=0.3, momentum=0.9)
SAMPLES = 20  # batches of 6, 6, 6 and 2


def data(samples: int = SAMPLES) -> Dataset:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(samples, 3)).astype(np.float32)
    return Dataset("toy", x, rng.integers(0, 2, samples), 2)


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(scope="module")
def reference() -> DefiningBackend:
    return open_backend("torch", "softmax", shape=(3,), classes=2, seed=1)


@pytest.fixture(scope="module")
def start(reference: DefiningBackend) -> Arrays:
    return reference.initial()


def opened(path: Path, **changed: Any) -> Backend:
    """Return the backend on the tiny graph, with a manifest that is changed so."""
    write_onnx(path, onnx_model(manifest("onnx", **changed)))
    return open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=path)


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return opened(tmp_path / "tiny.onnx")


def close(came: Arrays, due: Arrays, atol: float = 1e-6) -> None:
    assert list(came) == list(due)
    for name, array in due.items():
        assert came[name].dtype == array.dtype
        np.testing.assert_allclose(came[name], array, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "adam", "momentum": 0.0, "learning_rate": 0.01},
        {"proximal_mu": 0.3, "weight_decay": 0.01, "clip_norm": 0.2},
        {"epochs": None, "steps": 7},
    ],
    ids=str,
)
# 4 is below a batch, which then goes in as two pieces; 32 is above, and the rest is padding.
@pytest.mark.parametrize("batch", [None, 4, 32])
def test_steps_losses_and_accuracies_are_those_of_torch(
    changed: dict[str, Any], batch: int | None, tmp_path: Path, reference: DefiningBackend, start: Arrays
) -> None:
    plan = replace(PLAN, report_initial_loss=True, **changed)
    told: dict[str, list[StepReport]] = {"torch": [], "onnx": []}
    found: dict[str, TrainResult] = {}
    for one in (reference, opened(tmp_path / "tiny.onnx", batch=batch)):
        found[one.name] = one.train(start, data(), plan, rng(), on_step=told[one.name].append)
    close(found["onnx"].arrays, found["torch"].arrays)
    for field in ("loss", "initial_loss"):
        assert getattr(found["onnx"], field) == pytest.approx(getattr(found["torch"], field), abs=1e-6)
    for field in ("samples", "steps", "accuracy"):
        assert getattr(found["onnx"], field) == getattr(found["torch"], field)
    # The loss of each step is that of its own samples: the order of batches is the same.
    assert [replace(report, loss=0.0) for report in told["onnx"]] == [
        replace(report, loss=0.0) for report in told["torch"]
    ]
    np.testing.assert_allclose(*([report.loss for report in reports] for reports in told.values()), atol=1e-5)


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("batch_size", [3, 20, 256])
def test_evaluation_is_that_of_torch_whatever_the_batches(
    batch: int | None, batch_size: int, tmp_path: Path, reference: DefiningBackend, start: Arrays
) -> None:
    due = reference.evaluate(start, data())
    came = opened(tmp_path / "tiny.onnx", batch=batch).evaluate(start, data(), batch_size=batch_size)
    assert came.loss == pytest.approx(due.loss, abs=1e-6)
    assert (came.accuracy, came.samples) == (due.accuracy, due.samples)


def test_samples_that_a_cache_would_not_hold_go_through_in_even_pieces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: DefiningBackend, start: Arrays
) -> None:
    monkeypatch.setattr(graph, "AT_ONCE_BYTES", 4 * 3 * 4 + 1)  # four samples of three numbers
    pieces: list[int] = []
    run = OnnxRuntime.run

    def counted(self: OnnxRuntime, program: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        pieces.append(len(inputs["x"]))
        return run(self, program, inputs)

    monkeypatch.setattr(OnnxRuntime, "run", counted)
    plan = replace(PLAN, epochs=1)
    came = opened(tmp_path / "tiny.onnx").train(start, data(), plan, rng())
    assert pieces == [3, 3] * 3 + [2]
    close(came.arrays, reference.train(start, data(), plan, rng()).arrays)


def test_counters_grow_by_the_steps_and_constants_stay(tmp_path: Path, start: Arrays) -> None:
    more = {
        "norm.num_batches_tracked": np.array(5),
        "norm.table": np.arange(3, dtype=np.float32),
    }
    entries = [
        TensorEntry(name="norm.num_batches_tracked", shape=(), dtype="int64", kind="counter"),
        TensorEntry(name="norm.table", shape=(3,), dtype="float32", kind="constant"),
    ]
    backend = opened(tmp_path / "tiny.onnx", tensors=[*manifest("onnx").tensors, *entries])
    trained = backend.train(start | more, data(), PLAN, rng()).arrays
    # 3 epochs of 4 batches.
    counter = trained["norm.num_batches_tracked"]
    assert (counter.item(), counter.shape, counter.dtype) == (17, (), np.int64)
    np.testing.assert_array_equal(trained["norm.table"], more["norm.table"])
    assert more["norm.num_batches_tracked"] == 5


def test_training_is_the_same_bit_for_bit_and_changes_nothing_that_came(
    backend: Backend, start: Arrays
) -> None:
    came, toys = copied(start), data()
    for array in (*came.values(), toys.x, toys.y):
        array.flags.writeable = False
    first, second = (backend.train(came, toys, PLAN, rng()).arrays for _ in range(2))
    close(first, second, atol=0)
    backend.evaluate(came, toys)
    close(came, start, atol=0)


def test_two_threads_that_train_do_not_disturb_each_other(backend: Backend, start: Arrays) -> None:
    alone = backend.train(start, data(), PLAN, rng()).arrays
    together: list[Arrays] = []
    threads = [
        threading.Thread(target=lambda: together.append(backend.train(start, data(), PLAN, rng()).arrays))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(together) == 3
    for arrays in together:
        close(arrays, alone, atol=0)


def test_a_call_to_stop_is_heeded_at_the_next_batch(backend: Backend, start: Arrays) -> None:
    with pytest.raises(Canceled, match="training was called off before step 1 of 12"):
        backend.train(start, data(), PLAN, rng(), should_stop=lambda: True)
    with pytest.raises(Canceled, match="evaluation was called off before sample 0 of 20"):
        backend.evaluate(start, data(), should_stop=lambda: True)


def test_arrays_and_data_that_do_not_fit_are_refused(backend: Backend, start: Arrays) -> None:
    wrong = start | {"fc.bias": np.zeros(62, np.float32)}
    with pytest.raises(TensorError, match=r"tensor 'fc.bias' has shape \(62,\), the model has \(2,\)"):
        backend.train(wrong, data(), PLAN, rng())
    with pytest.raises(TensorError):
        backend.evaluate(wrong, data())
    with pytest.raises(DataError, match="labels run from 0 to 5, the model has 2 classes"):
        backend.train(start, replace(data(), y=np.arange(SAMPLES) % 6), PLAN, rng())


def test_what_is_not_finite_is_named(backend: Backend, start: Arrays) -> None:
    with pytest.raises(TrainingFailed, match=r"the loss is (nan|inf); a lower learning rate"):
        backend.train(start, data(), replace(PLAN, learning_rate=3e38), rng())
    big = replace(data(), x=data().x * np.float32(1e4))
    with pytest.raises(TrainingFailed, match=r"model 'tiny': tensor 'fc.weight' is not finite after step 1;"):
        backend.train(start, big, TrainPlan(None, 1, 20, 3e38), rng())


def test_a_graph_that_fails_while_it_runs_is_a_failed_training(tmp_path: Path, start: Arrays) -> None:
    model = onnx_model()
    # The mean over samples becomes what stands at the samples' number among them: there is nothing.
    node = next(node for node in model.graph.node if node.output[0] == "mean")
    model.graph.node.insert(0, helper.make_node("Shape", ["y"], ["beyond"]))
    node.op_type, node.input[:] = "Gather", ["counted", "beyond"]
    write_onnx(tmp_path / "tiny.onnx", model)
    backend = open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=tmp_path / "tiny.onnx")
    with pytest.raises(TrainingFailed, match=r"model 'tiny' failed in ONNX Runtime: .*Gather"):
        backend.train(start, data(), PLAN, rng())


def test_a_file_that_a_runtime_does_not_take_is_refused(tmp_path: Path) -> None:
    model = onnx_model()
    model.opset_import[0].version = 9999
    write_onnx(tmp_path / "tiny.onnx", model)
    with pytest.raises(ArtefactError, match=r"artefact 'tiny.onnx': ONNX Runtime \S+ does not take it"):
        open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=tmp_path / "tiny.onnx")


def test_another_models_artefact_is_refused_before_a_session_opens(tmp_path: Path) -> None:
    model = onnx_model()
    model.opset_import[0].version = 9999  # no session takes it
    path = write_onnx(tmp_path / "tiny.onnx", model)
    with pytest.raises(ArtefactError, match="model: is 'tiny', 'lenet5' is due"):
        open_backend("onnx", "lenet5", shape=(3,), classes=2, seed=0, artefact=path)
    model.graph.node.append(helper.make_node("Exec", ["x"], ["z"], "evil", domain="com.evil"))
    with pytest.raises(ArtefactError, match=r"operator 'Exec' of 'com.evil'"):
        open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=write_onnx(path, model))


def test_the_other_runtimes_artefact_is_refused(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "tiny.tflite")
    with pytest.raises(ArtefactError, match="is no onnx file"):
        open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=path)


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_without_an_artefact_its_command_is_named(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backend(name, "lenet5", shape=(1, 28, 28), classes=10, seed=0)
    assert str(caught.value) == (
        f"backend {name!r}: needs an artefact: 'trellis export lenet5 --format {name} --for training'"
    )


@pytest.mark.parametrize(("threads", "due"), [(None, 1), (2, 2)])
def test_a_session_has_the_threads_that_it_is_given_and_one_by_default(
    threads: int | None, due: int, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "tiny.onnx")
    backend: Any = open_backend("onnx", "tiny", shape=(3,), classes=2, seed=0, artefact=path, threads=threads)
    assert backend._runtime._session.get_session_options().intra_op_num_threads == due


def test_a_process_that_trains_with_onnx_loads_no_other_framework(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; import numpy as np\n"
        "from models.backends import TrainPlan, open_backend; from models.datasets import Dataset\n"
        "path = Path(sys.argv[1])\n"
        "backend = open_backend('onnx', 'tiny', shape=(3,), classes=2, seed=0, artefact=path)\n"
        "arrays = {'fc.weight': np.zeros((2, 3), np.float32), 'fc.bias': np.zeros(2, np.float32)}\n"
        "toys = Dataset('toy', np.ones((9, 3), np.float32), np.arange(9) % 2, 2)\n"
        "done = backend.train(arrays, toys, TrainPlan(1, None, 4, 0.1), np.random.default_rng(0))\n"
        "backend.evaluate(done.arrays, toys)\n"
        "print(json.dumps([done.steps, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    command = [sys.executable, "-c", code, str(write_onnx(tmp_path / "tiny.onnx"))]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    steps, loaded = json.loads(ran.stdout)
    assert steps == 3
    assert "onnxruntime" in loaded
    others = {"torch", "tensorflow", "onnx", "ai_edge_litert", "jax", "sklearn", "scipy", "flatbuffers"}
    assert others & set(loaded) == set()
