"""What is refused of an exported file before a runtime opens it, and with which words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graph_files
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from graph_files import manifest, onnx_model, write_onnx, write_tflite
from onnx import TensorProto, helper

from models.exported import MAX_ARTEFACT_BYTES, Artefact, read_artefact, require_model
from models.manifest import METADATA_KEY
from trellis.errors import ArtefactError

ROOT = Path(__file__).parents[3]


def read(path: Path, runtime: Any = None) -> Artefact:
    return read_artefact(path, runtime=runtime or path.suffix[1:], purpose="training")


def refusal(path: Path, runtime: Any = None) -> str:
    with pytest.raises(ArtefactError) as caught:
        read(path, runtime)
    return str(caught.value)


@pytest.fixture(params=["onnx", "tflite"])
def sound(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write = {"onnx": write_onnx, "tflite": write_tflite}[request.param]
    return write(tmp_path / f"tiny.{request.param}")


def test_a_sound_file_is_its_manifest_and_its_bytes(sound: Path) -> None:
    found = read(sound)
    assert found.manifest == manifest(sound.suffix[1:])
    assert (found.where, found.content) == (sound.name, sound.read_bytes())
    require_model(found, "tiny", shape=(3,), classes=2)


def test_a_file_of_three_gigabytes_is_refused_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 1024**3)
    code = (
        "import re, sys; from pathlib import Path; from models.exported import read_artefact\n"
        "try: read_artefact(Path(sys.argv[1]), runtime='onnx', purpose='training')\n"
        "except Exception as error: print(error)\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) < 64 * 1024)"
    )
    command = [sys.executable, "-c", code, str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.splitlines() == [
        f"artefact 'huge.onnx': has 3221225472 bytes, at most {MAX_ARTEFACT_BYTES} are due",
        "True",
    ], ran.stderr


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_onnx(tmp_path / "tiny.onnx")
    size = path.stat().st_size
    before = path.stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: before)
    with path.open("ab") as file:
        file.write(b"\0" * 9)
    with pytest.raises(ArtefactError, match=f"has {size + 1} bytes, at most {size} are due"):
        read_artefact(path, runtime="onnx", purpose="training", max_bytes=size)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert refusal(tmp_path / "pipe.onnx") == "artefact 'pipe.onnx': is no file"
    assert refusal(tmp_path, "onnx").endswith("is no file")
    assert (
        refusal(tmp_path / "none.onnx") == "artefact 'none.onnx': cannot be read: No such file or directory"
    )
    (tmp_path / "empty.onnx").touch()
    assert refusal(tmp_path / "empty.onnx") == "artefact 'empty.onnx': is empty"


def test_a_file_cut_short_anywhere_is_refused(sound: Path) -> None:
    whole = sound.read_bytes()
    for length in range(1, len(whole), 7):
        sound.write_bytes(whole[:length])
        with pytest.raises(ArtefactError):
            read(sound)
    sound.write_bytes(whole[: len(whole) // 2])
    assert "or a broken one" in refusal(sound)


def test_the_other_formats_file_is_refused(tmp_path: Path) -> None:
    assert "is no tflite file" in refusal(write_onnx(tmp_path / "tiny.onnx"), "tflite")
    assert "is no onnx file" in refusal(write_tflite(tmp_path / "tiny.tflite"), "onnx")


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_a_file_without_a_manifest_is_refused(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / f"bare.{runtime}"
    if runtime == "onnx":
        model = onnx_model()
        model.metadata_props[0].key = "other"
        write_onnx(path, model)
    else:
        write_tflite(path, change=lambda model: setattr(model, "metadata", []))
    assert refusal(path) == f"artefact 'bare.{runtime}': has no manifest (make it with 'trellis export')"


def test_a_manifest_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    model = onnx_model()
    model.metadata_props[0].value = '{"purpose": "training"}'
    assert "its manifest: 9 faults" in refusal(write_onnx(tmp_path / "tiny.onnx", model))


def test_two_manifests_are_refused(tmp_path: Path) -> None:
    model = onnx_model()
    model.metadata_props.add().CopyFrom(model.metadata_props[0])
    path = write_onnx(tmp_path / "two.onnx", model)
    assert f"its metadata have 2 entries '{METADATA_KEY}', one is due" in refusal(path)


def test_another_runtimes_or_purposes_manifest_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "tiny.onnx", onnx_model(manifest("tflite")))
    assert refusal(path) == "artefact 'tiny.onnx': runtime: is 'tflite', 'onnx' is due"
    with pytest.raises(ArtefactError, match=r"purpose: is 'training', 'inference' is due \(export it with"):
        read_artefact(write_onnx(path), runtime="onnx", purpose="inference")


def test_another_models_artefact_is_refused_with_all_that_differs(sound: Path) -> None:
    with pytest.raises(ArtefactError) as caught:
        require_model(read(sound), "lenet5", shape=(1, 28, 28), classes=2)
    assert str(caught.value) == (
        f"artefact {sound.name!r}: 2 faults\n"
        "  - model: is 'tiny', 'lenet5' is due\n"
        "  - shape: is (3,), (1, 28, 28) is due"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"shape": (4,)}, "programs.train.inputs.x: has shape (?, 3) in the graph, (?, 4) is due"),
        (
            {"batch": 4, "classes": 3},
            "programs.eval.outputs.logits: has shape (?, 2) in the graph, (4, 3) is due",
        ),
    ],
)
def test_a_manifest_that_is_not_its_graphs_is_refused(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    assert problem in refusal(write_onnx(tmp_path / "tiny.onnx", onnx_model(manifest("onnx", **change))))


def test_names_types_and_fixed_batches_that_are_not_the_graphs_are_refused(tmp_path: Path) -> None:
    model = onnx_model()
    model.graph.input[0].name = "weights"
    model.graph.input[3].type.tensor_type.elem_type = TensorProto.INT32
    model.graph.input[4].type.tensor_type.shape.dim[0].dim_value = 4
    assert refusal(write_onnx(tmp_path / "tiny.onnx", model)) == (
        "artefact 'tiny.onnx': 6 faults\n"
        "  - programs.train.inputs.tensor:fc.weight: is called 'weight', which the graph does not have\n"
        "  - programs.train.inputs.y: is int32 in the graph, int64 is due\n"
        "  - programs.train.inputs.w: has shape (4) in the graph, (?) is due\n"
        "  - programs.eval.inputs.tensor:fc.weight: is called 'weight', which the graph does not have\n"
        "  - programs.eval.inputs.y: is int32 in the graph, int64 is due\n"
        "  - programs.eval.inputs.w: has shape (4) in the graph, (?) is due"
    )


def test_a_signature_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "tiny.tflite", change=lambda model: model.signatureDefs.pop())
    assert refusal(path) == "artefact 'tiny.tflite': programs.eval: is not in the graph"


def _external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def _tensor() -> onnx.TensorProto:
    return helper.make_tensor("secret", TensorProto.FLOAT, [1], [1.0])


def _branch(*nodes: onnx.NodeProto) -> onnx.NodeProto:
    inside = helper.make_graph(list(nodes), "inside", [], [])
    return helper.make_node("If", ["c"], ["z"], "branch", then_branch=inside, else_branch=inside)


def _with_node(node: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.append(node)


def _foreign() -> onnx.NodeProto:
    return helper.make_node("Exec", ["x"], ["z"], "evil", domain="com.evil")


def _add_function(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], [], opsets))


BRANCHES = (
    "2 faults\n  - node 'branch' is the operator 'If', which may never end: steps written out are due\n  - "
)
OTHERS = "node 'evil' is the operator 'Exec' of 'com.evil', which is not ONNX's own"
ELSEWHERE = "tensor 'secret' lies in another file (external data), all are due in this one"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_with_node(_foreign()), OTHERS),
        (_with_node(_branch(_foreign())), f"{BRANCHES}{OTHERS}"),
        (_with_node(_branch(_branch(_foreign()))), f"{BRANCHES}{OTHERS}"),
        (
            lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
            "it needs the operators of 'com.microsoft', only those of ONNX itself are due",
        ),
        (_add_function, "it brings functions of its own"),
        (
            lambda model: model.training_info.add().algorithm.node.append(_foreign()),
            "it brings a training graph of ONNX's own kind",
        ),
        (lambda model: model.graph.initializer.append(_external(_tensor())), ELSEWHERE),
        (
            _with_node(helper.make_node("Constant", [], ["k"], "k", value=_external(_tensor()))),
            ELSEWHERE,
        ),
        (
            _with_node(_branch(helper.make_node("Constant", [], ["k"], value=_external(_tensor())))),
            f"{BRANCHES}{ELSEWHERE}",
        ),
        (
            lambda model: _external(model.graph.sparse_initializer.add().values).MergeFrom(_tensor()),
            ELSEWHERE,
        ),
    ],
)
def test_what_an_onnx_file_may_not_ask_for(
    change: Callable[[onnx.ModelProto], None], problem: str, tmp_path: Path
) -> None:
    model = onnx_model()
    change(model)
    assert refusal(write_onnx(tmp_path / "tiny.onnx", model)) == f"artefact 'tiny.onnx': {problem}"


def test_a_location_is_enough_to_be_external(tmp_path: Path) -> None:
    model = onnx_model()
    tensor = model.graph.initializer.add(name="secret")
    tensor.data_location = TensorProto.EXTERNAL
    assert ELSEWHERE in refusal(write_onnx(tmp_path / "tiny.onnx", model))


def test_a_second_graph_that_libraries_would_merge_is_refused(tmp_path: Path) -> None:
    # To protobuf the concatenation of two messages is their merger: nodes of both, the latter's scalars.
    other = onnx.ModelProto()
    other.graph.node.append(_foreign())
    path = tmp_path / "tiny.onnx"
    path.write_bytes(onnx_model().SerializeToString() + other.SerializeToString())
    assert "field 7 stands 2 times, at most once is due" in refusal(path)


def test_many_faults_are_told_as_the_first_and_their_number(tmp_path: Path) -> None:
    model = onnx_model()
    for index in range(30):
        model.graph.node.append(helper.make_node("Exec", ["x"], ["z"], f"evil{index}", domain="com.evil"))
    told = refusal(write_onnx(tmp_path / "tiny.onnx", model)).splitlines()
    assert (len(told), told[0], told[-1]) == (22, "artefact 'tiny.onnx': 21 faults", "  - and 10 faults more")


def _custom(model: Any) -> None:
    model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = "FlexErf"


def _late_custom(model: Any) -> None:
    model.operatorCodes[0].deprecatedBuiltinCode = 0
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL


def _behind(model: Any) -> None:
    model.buffers[0].offset, model.buffers[0].size = 4096, 64


def _far_options(model: Any) -> None:
    model.subgraphs[0].operators[0].largeCustomOptionsOffset = 4096


def _beside(model: Any) -> None:
    model.externalBufferGroups = [schema.ExternalBufferGroupT()]
    model.externalBufferGroups[0].name = "/etc/passwd"


def _tensor_beside(model: Any) -> None:
    model.subgraphs[0].tensors[0].externalBuffer = 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_custom, "it needs the operator 'FlexErf', which is not built into LiteRT"),
        (_late_custom, "it needs the operator 'STABLEHLO_CUSTOM_CALL', which is not built into LiteRT"),
        (_behind, "buffer 0 lies behind the FlatBuffer, all are due inside of it"),
        (_far_options, "an operator's options lie behind the FlatBuffer, all are due inside of it"),
        (_beside, "it has buffers in other files, all are due in this one"),
        (_tensor_beside, "tensor 'weight' lies in another file, all are due in this one"),
    ],
)
def test_what_a_tflite_file_may_not_ask_for(
    change: Callable[[Any], None], problem: str, tmp_path: Path
) -> None:
    path = write_tflite(tmp_path / "tiny.tflite", change=change)
    assert refusal(path) == f"artefact 'tiny.tflite': {problem}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda model: setattr(model.subgraphs[0].operators[0], "inputs", [99]), "tensor 99 is named"),
        (
            lambda model: setattr(model.subgraphs[0].operators[0], "opcodeIndex", 7),
            "operator code 7 is named",
        ),
        (lambda model: setattr(model.subgraphs[0].tensors[0], "buffer", 9), "buffer 9 is named, there are 2"),
        (lambda model: setattr(model.metadata[0], "buffer", 9), "buffer 9 is named, there are 2"),
        (lambda model: setattr(model.signatureDefs[0], "subgraphIndex", 4), "subgraph 4 is named"),
    ],
)
def test_indices_that_lead_nowhere_are_refused(
    change: Callable[[Any], None], problem: str, tmp_path: Path
) -> None:
    path = write_tflite(tmp_path / "tiny.tflite", change=change)
    assert f"is no tflite file, or a broken one: {problem}" in refusal(path)


def test_the_files_are_what_the_runtimes_take() -> None:
    # Else all of the above could be refused for a wrong reason.
    onnx.checker.check_model(onnx_model())
    assert set(graph_files.TENSORS) == {tensor.name for tensor in manifest("onnx").tensors}
