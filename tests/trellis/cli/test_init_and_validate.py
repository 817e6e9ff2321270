"""The files to start from are right, and a wrong task is told every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trellis import config, descriptor
from trellis.cli import main
from trellis.cli.option_specs import option_specs
from trellis.cli.root import every_command
from trellis.envelope import Envelope, sign
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


def made(folder: Path, capsys: pytest.CaptureFixture[str], old: str = "", new: str = "") -> None:
    """Write the task of `trellis init` with other words in it."""
    assert main(["init"]) == 0
    task = (folder / "task.yaml").read_text()
    assert old in task
    (folder / "task.yaml").write_text(task.replace(old, new, 1))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("window", "told"),
    [
        ({"expires_at": "2026-05-08T12:00:00Z"}, "expires_at: task 'digits' expired at 2026-05-08T12:00:00"),
        (
            {"issued_at": "2126-05-01T12:00:00Z", "expires_at": "2126-05-08T12:00:00Z"},
            "issued_at: task 'digits' was issued at 2126-05-01T12:00:00+00:00, and here it is 20",
        ),
    ],
)
def test_validate_finds_a_task_that_does_not_hold_now(
    window: dict[str, str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {"issued_at": "2026-05-01T12:00:00Z"} | window
    made(folder, capsys)
    with (folder / "task.yaml").open("a") as file:
        file.writelines(f"{name}: {moment}\n" for name, moment in lines.items())
    assert main(["task", "validate", "task.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: task file 'task.yaml': {told}")


def test_validate_warns_of_a_model_that_only_the_server_may_have(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(folder, capsys, "{name: mlp}", "{name: lenet}")
    assert main(["task", "validate", "task.yaml"]) == 0
    told = capsys.readouterr()
    assert told.out == "task.yaml: task 'digits', revision 1, is right\n"
    assert told.err.startswith("warning: model.name: model 'lenet' is not known here: did you mean 'lenet5'?")
    assert "Known are convnet, gru, lenet5, " in told.err
    assert main(["task", "validate", "task.yaml", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning["field"] == "model.name"


def test_validate_warns_of_a_model_beside_other_faults(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(folder, capsys, "{name: mlp}", "{name: lenet, layers: 3}")
    assert main(["task", "validate", "task.yaml"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in told] == [
        ["warning", "model.name"],
        ["error", "task file 'task.yaml'"],
    ]


def test_validate_finds_a_model_that_does_not_take_the_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(folder, capsys, "{name: mlp}", "{name: lenet5}")
    assert main(["task", "validate", "task.yaml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: task file 'task.yaml': data.shape: samples have shape (1, 8, 8), it wants")


def test_validate_takes_a_signed_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(folder, capsys)
    assert main(["task", "sign", "task.yaml", "-o", "signed.json"]) == 0
    keyid = load_signing_key(folder / "keys").keyid
    capsys.readouterr()
    assert main(["task", "validate", "signed.json"]) == 0
    said = f"signed.json: task 'digits', revision 1, signed with key {keyid}, is right\n"
    assert capsys.readouterr().out == said


def test_validate_finds_the_faults_of_a_signed_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(folder, capsys)
    envelope = sign(json.dumps({"task": "digits", "train": {"rounds": 0}}), load_signing_key(folder / "keys"))
    (folder / "signed.json").write_bytes(envelope.to_bytes())
    assert main(["task", "validate", "signed.json"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: task file 'signed.json': 6 faults\n  - regions: is missing\n")
    assert "  - train.rounds: input should be greater than or equal to 1, got 0\n" in told


def test_a_signed_task_is_not_signed_once_more(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(folder, capsys)
    assert main(["task", "sign", "task.yaml", "-o", "signed.json"]) == 0
    capsys.readouterr()
    assert main(["task", "sign", "signed.json", "-o", "again.json"]) == 2
    assert capsys.readouterr().err == (
        "error: task file 'signed.json': is signed already: post it as it is\n"
    )
    assert not (folder / "again.json").exists()


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
