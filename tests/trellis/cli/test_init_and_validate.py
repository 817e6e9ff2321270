"""The files to start from are right, and a wrong task is told every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trellis import config, descriptor
from trellis.cli import main
from trellis.cli.option_specs import option_specs
from trellis.cli.root import every_command
from trellis.envelope import Envelope
from trellis.keys.identity import Identity, load_keyring, load_signing_key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_valid_task_and_keys_for_its_region(folder: Path) -> None:
    assert main(["init"]) == 0
    task = descriptor.load(folder / "task.yaml")
    assert (task.task, task.model.name, task.regions) == ("digits", "mlp", ("eu-1",))
    assert (task.server.address, task.server.tls) == ("127.0.0.1:8000", False)
    assert (task.participants.minimum, task.participants.quorum) == (2, 0.5)
    assert Identity.load(folder / "keys" / "gateways" / "eu-1").common_name == "eu-1/gateway"
    assert load_signing_key(folder / "keys").keyid in load_keyring(folder / "keys").keyids
    assert (folder / "keys" / "broker" / "acl").read_text().count("user ") == 3


def test_its_settings_fit_every_command(folder: Path) -> None:
    assert main(["init"]) == 0
    settings = config.load(None)
    assert settings is not None
    commands = every_command()
    settings.check_sections(commands)
    for name, command in commands.items():
        settings.defaults(name, option_specs(command), dict)


def test_init_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "task.yaml").write_text("mine")
    assert main(["init"]) == 2
    assert "task.yaml: is there already" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["task.yaml"]
    assert (folder / "task.yaml").read_text() == "mine"


def test_init_says_what_to_do_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "trial"]) == 0
    shown = capsys.readouterr().out
    assert "made trial/task.yaml" in shown
    assert "  cd trial\n  trellis broker\n  trellis server\n" in shown


def test_init_says_when_a_changed_task_may_have_the_same_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "wait for its end or call it off (trellis task cancel digits), and give it a higher" in shown
    (line,) = [one for one in Path("task.yaml").read_text().splitlines() if one.startswith("revision:")]
    assert line.endswith("under the same name once this has ended")


def test_init_prints_what_it_made_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "made": ["task.yaml", "trellis.toml", "keys"],
        "used": [],
    }


def test_init_uses_the_keys_that_are_there_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "init", "keys", "--region", "us-1"]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["init"]) == 0
    assert "uses keys, as it is" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert descriptor.load(folder / "task.yaml").task == "digits"


def test_init_beside_a_folder_that_holds_no_operators_keys_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "keys").mkdir()
    assert main(["init"]) == 2
    told = capsys.readouterr().err
    assert "folder 'keys'" in told
    assert "signing.key" in told
    assert [path.name for path in folder.iterdir()] == ["keys"]


WRONG = """\
task: Digits
regions: [eu-1, eu-1]
server: {address: "127.0.0.1"}
model: {name: mlp, layers: 3}
data: {name: digits, shape: [1, 8, 8]}
train: {rounds: 0, learning_rate: 0.1}
"""
FAULTY = {"task", "regions", "server.address", "model.layers", "data.classes", "train.rounds"}


def test_validate_names_every_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "task.yaml").write_text(WRONG)
    assert main(["task", "validate", "task.yaml"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: task file 'task.yaml': 6 faults\n")
    assert {line.removeprefix("  - ").split(": ")[0] for line in told.err.splitlines()[1:]} == FAULTY


def test_validate_names_every_fault_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "task.yaml").write_text(WRONG)
    assert main(["task", "validate", "task.yaml", "--json"]) == 2
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert told.err == ""
    assert found["valid"] is False
    assert {fault["field"] for fault in found["faults"]} == FAULTY
    assert all(set(fault) == {"field", "problem", "remedy"} for fault in found["faults"])


def test_validate_names_the_faults_of_a_strategy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    task = (folder / "task.yaml").read_text().replace("{name: fedavg}", "{name: krum, params: {f: 1}}")
    (folder / "task.yaml").write_text(task)
    capsys.readouterr()
    assert main(["task", "validate", "task.yaml"]) == 2
    assert "strategy.params.f: is no parameter of 'krum'" in capsys.readouterr().err


def test_validate_says_that_a_task_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    capsys.readouterr()
    assert main(["task", "validate", "task.yaml"]) == 0
    assert capsys.readouterr().out == "task.yaml: task 'digits', revision 1, is right\n"


def test_a_missing_task_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "validate", "none.yaml"]) == 2
    assert (
        capsys.readouterr().err == "error: task file 'none.yaml': cannot be read: No such file or directory\n"
    )


def test_sign_writes_an_envelope_that_the_pinned_key_verifies(folder: Path) -> None:
    assert main(["init"]) == 0
    assert main(["task", "sign", "task.yaml", "-o", "signed.json"]) == 0
    envelope = Envelope.parse((folder / "signed.json").read_bytes())
    assert load_keyring(folder / "keys").verify(envelope) == load_signing_key(folder / "keys").keyid
    assert descriptor.parse_json(envelope.payload).task == "digits"


def test_schema_is_the_descriptors_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == descriptor.json_schema()
