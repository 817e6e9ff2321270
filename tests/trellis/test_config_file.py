"""trellis.toml and TRELLIS_ variables: what is taken, and what is refused by name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from trellis import config
from trellis.config import OptionSpec
from trellis.errors import ConfigError

SPECS = (
    OptionSpec("api-port", "api_port", int),
    OptionSpec("server", "server", str, multiple=True),
    OptionSpec("insecure", "insecure", bool),
    OptionSpec("keep-hours", "keep_hours", float),
    OptionSpec("region", "region", str),
)


def nobody_else() -> Collection[str]:
    return ()


def defaults(folder: Path, text: str, section: str = "gateway") -> dict[str, config.Value]:
    path = folder / "trellis.toml"
    path.write_text(text, encoding="utf-8")
    loaded = config.load(path)
    assert loaded is not None
    loaded.check_sections(["gateway", "device"])
    return loaded.defaults(section, SPECS, nobody_else)


def test_a_section_holds_values_by_option_name_with_dashes_or_underscores(tmp_path: Path) -> None:
    text = '[gateway]\napi-port = 9\nkeep_hours = 2\nserver = ["a", "b"]\n'
    assert defaults(tmp_path, text) == {"api-port": 9, "keep-hours": 2, "server": ["a", "b"]}


def test_one_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    assert defaults(tmp_path, '[gateway]\nserver = "a"\n') == {"server": ["a"]}


def test_the_commands_own_section_goes_before_common(tmp_path: Path) -> None:
    text = '[gateway]\nregion = "eu-1"\n[common]\nregion = "us-1"\ninsecure = true\n'
    assert defaults(tmp_path, text) == {"region": "eu-1", "insecure": True}


def test_common_may_hold_what_other_commands_have(tmp_path: Path) -> None:
    assert defaults(tmp_path, '[common]\nkeys = "keys"\n') == {}


def test_common_asks_the_other_commands_about_a_strange_key(tmp_path: Path) -> None:
    path = tmp_path / "trellis.toml"
    path.write_text("[common]\nfront-port = 1\n", encoding="utf-8")
    loaded = config.load(path)
    assert loaded is not None
    assert loaded.defaults("gateway", SPECS, lambda: {"front-port"}) == {}
    with pytest.raises(ConfigError, match=r"common\.front-port: is no command's option"):
        loaded.defaults("gateway", SPECS, nobody_else)


def test_every_fault_is_named_with_the_nearest_key(tmp_path: Path) -> None:
    wrong = [
        "api-prot = 1",
        'insecure = "yes"',
        "api-port = true",
        "region = 7",
        'keep-hours = "x"',
        "server = [1]",
    ]
    text = "\n".join(["[gateway]", *wrong])
    with pytest.raises(ConfigError) as raised:
        defaults(tmp_path, text)
    assert {(fault.field, fault.problem, fault.remedy) for fault in raised.value.faults} == {
        ("gateway.api-prot", "is no option of 'trellis gateway'", "did you mean api-port?"),
        ("gateway.insecure", 'must be true or false, got "yes"', ""),
        ("gateway.api-port", "must be an integer, got true", ""),
        ("gateway.region", "must be a text in quotes, got 7", ""),
        ("gateway.keep-hours", 'must be a number, got "x"', ""),
        ("gateway.server", "must be a list, each a text in quotes, got [1]", ""),
    }


def test_a_list_for_a_single_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'gateway\.region: must be a text in quotes, got \["a"\]'):
        defaults(tmp_path, '[gateway]\nregion = ["a"]\n')


def test_an_unknown_section_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gatway: is no section of it \(did you mean \[gateway\]\?\)"):
        defaults(tmp_path, "[gatway]\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("api-port = 1\n", r"api-port: stands in no section"),
        ("[gateway\n", "is not TOML"),
        ("[gateway]\na = 1\na = 2\n", "is not TOML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        defaults(tmp_path, text)


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trellis.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        config.load(path)


def test_without_a_file_in_the_working_folder_there_are_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load(None) is None


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "other.toml")


def test_a_misspelt_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"TRELLIS_API_PROT: is no setting \(did you mean TRELLIS_API_PORT\?\)"
    ):
        config.check_environment({"TRELLIS_API_PROT": "1", "HOME": "/"}, ["api-port"], nobody_else)


def test_variables_of_this_command_of_all_and_internal_ones_are_known_without_asking() -> None:
    def asked() -> Collection[str]:
        raise AssertionError("asked the other commands")

    environment = dict.fromkeys(
        ("TRELLIS_API_PORT", "TRELLIS_KEYS", "TRELLIS_CONFIG", "TRELLIS_BACKCHANNEL"), "x"
    )
    config.check_environment(environment, ["api-port"], asked)


def test_another_commands_variable_is_known() -> None:
    config.check_environment({"TRELLIS_FRONT_PORT": "1"}, ["api-port"], lambda: ["front-port"])
