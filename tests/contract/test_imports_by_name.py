"""What the import checker cannot see: a part of ours that is imported by its name in a string."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("central_server", "regional_gateway", "device_agent", "models")


def names_in(file: Path) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return [
        argument.value
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] in {"import_module", "__import__", "find_spec"}
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def test_trellis_imports_none_of_ours_by_its_name() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in (ROOT / "trellis").rglob("*.py")
        for name in names_in(file)
        if name.partition(".")[0] in OURS
    }
    assert found == set()
