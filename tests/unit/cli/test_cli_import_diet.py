"""What `insula ls` imports decides how long it takes: 20 ms for itself, 150 ms with what is on this list."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.cli.conftest import environment
from tests.unit.client.stub import Stub, machine

TOO_HEAVY = {
    "argparse",
    "asyncio",
    "click",
    "contextlib",
    "dataclasses",
    "datetime",
    "email",
    "gettext",
    "http.client",
    "inspect",
    "json",
    "pathlib",
    "pydantic",
    "rich",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "typing",
    "urllib.parse",
}
# Without what `python -c pass` has by itself: a site that reads .pth files may import much.
PROGRAM = """
import sys
before = set(sys.modules)
from insula.cli.main import run
status = run(["ls"])
print(status, *sorted(set(sys.modules) - before), file=sys.stderr)
"""


def imported(stub: Stub) -> set[str]:
    stub.answer("GET", "/v1/machines", [machine(f"m{i}") for i in range(20)])
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, text=True, check=True
    )
    status, *modules = ran.stderr.split()
    assert status == "0"
    assert len(ran.stdout.splitlines()) == 21
    return set(modules)


@pytest.mark.slow
def test_ls_imports_nothing_heavy(stub: Stub) -> None:
    assert imported(stub) & (TOO_HEAVY | {"re", "enum", "collections", "functools"}) == set()
