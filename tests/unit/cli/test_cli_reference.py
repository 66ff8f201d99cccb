"""docs/reference/cli.md tells every command and option there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from insula.cli.main import commands, run

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"
IMAGE = [f"image {verb}" for verb in ("ls", "info", "pull", "import", "export", "build", "rm", "prune")]
SYSTEM = [f"system {verb}" for verb in ("df", "check", "prune")]


@pytest.mark.parametrize("name", [*commands(), *IMAGE, *SYSTEM, "op ls", "op wait", "daemon status"])
def test_reference_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    reference = REFERENCE.read_text()
    assert re.search(rf"insula [a-z, ]*\b{name}\b", reference)
    for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE):
        assert option in reference, f"insula {name} {option} is not in docs/reference/cli.md"
