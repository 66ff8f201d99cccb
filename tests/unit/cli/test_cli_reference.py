"""docs/reference/cli.md tells every command and option there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from insula.cli.main import commands, run

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"
IMAGE = [f"image {verb}" for verb in ("ls", "info", "pull", "import", "export", "build", "rm", "prune")]
SNAPSHOT = [f"snapshot {verb}" for verb in ("create", "ls", "info", "restore", "rm")]
SYSTEM = [f"system {verb}" for verb in ("df", "check", "prune")]
OTHERS = ["op ls", "op wait", "daemon status"]


@pytest.mark.parametrize("name", [*commands(), *IMAGE, *SNAPSHOT, *SYSTEM, *OTHERS])
def test_reference_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    reference = REFERENCE.read_text()
    assert re.search(rf"insula [a-z, ]*\b{name}\b", reference)
    for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE):
        assert option in reference, f"insula {name} {option} is not in docs/reference/cli.md"
