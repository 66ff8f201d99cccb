"""The house rules that a machine can check: who may know what, names of files, documented errors."""

from __future__ import annotations

import ast
import configparser
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.kit.errors import REGISTRY, InsulaError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "insula"
CONTRACT = ROOT / ".importlinter"
ERRORS_TABLE = ROOT / "docs" / "reference" / "errors.md"

SPAWNERS = re.compile(
    r"\.(create_subprocess|subprocess)_(exec|shell)$|^os\.(fork|forkpty|posix_spawnp?|system|popen|spawn\w+)$"
    r"|^subprocess\.(Popen|run|call|check_call|check_output|getoutput|getstatusoutput)$"
)
# Words of QEMU's command line and QMP that would betray an engine detail in another room.
MONITOR_WORDS = re.compile(
    r"^-(device|drive|netdev|chardev|machine|accel|blockdev|incoming|nodefaults|qmp|smp|object)$"
    r"|^(blockdev|device|netdev|object|chardev)[-_](add|del)$"
    r"|^(query-(status|cpus-fast|version|chardev)|system_(reset|powerdown|wakeup)|qmp_capabilities)$"
    r"|^(virtio-(blk|net|serial|rng)-(pci|device)|virtserialport)\b"
)


def sources(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    """(path below src/insula, syntax tree) of each module, of these rooms or of all."""
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        if not rooms or inside.parts[0] in rooms:
            yield str(inside), ast.parse(path.read_text(), str(path))


def rooms_on_disk() -> set[str]:
    return {
        path.stem
        for path in SOURCE.iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or (path.suffix == ".py" and path.stem != "__init__")
    }


def docstring_nodes(tree: ast.Module) -> set[ast.expr]:
    found: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(first.value)
    return found


def import_all() -> None:
    """Import every module of the package, so that every error has registered its code."""
    for module in pkgutil.walk_packages(insula.__path__, "insula."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_the_contract_names_every_room() -> None:
    contract = configparser.ConfigParser()
    contract.read(CONTRACT)
    floors = contract["importlinter:contract:floors"]
    assert floors.getboolean("exhaustive")
    named = set(re.findall(r"\w+", floors["layers"])) | set(floors["exhaustive_ignores"].split())
    assert rooms_on_disk() <= named, "a room without a floor: add it to .importlinter"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("control/stray.py", "import insula.node\n"),
        ("model/stray.py", "import insula.store\n"),
        ("cli/stray.py", "import insula.model\n"),
        ("node/stray.py", "import sqlite3\n"),
        ("store/stray.py", "import subprocess\n"),
        ("forgotten/__init__.py", ""),
    ],
)
def test_the_contract_can_fail(module: str, text: str, tmp_path: Path) -> None:
    copy = tmp_path / "insula"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / module).parent.mkdir(exist_ok=True)
    (copy / module).write_text(text)
    lint = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run(
        [sys.executable, "-c", lint, "--config", str(CONTRACT), "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"insula\.(\w+\.stray|forgotten)\b", done.stdout), done.stdout + done.stderr


def test_no_module_has_a_name_that_says_nothing() -> None:
    idle = {"util", "utils", "helper", "helpers", "common", "manager", "misc", "base_manager"}
    assert not [path for path, _ in sources() if Path(path).stem in idle or Path(path).parent.name in idle]


def test_every_room_says_what_it_is() -> None:
    silent = [
        path for path, tree in sources() if path.endswith("__init__.py") and not ast.get_docstring(tree)
    ]
    assert not silent, "the __init__ docstring of a room tells what it is and what it may not know"


def test_only_kit_run_spawns_processes() -> None:
    strays = []
    for path, tree in sources():
        if path in ("kit/run.py", "client/daemon.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and SPAWNERS.search(ast.unparse(node.func)):
                strays.append(f"{path}:{node.lineno} {ast.unparse(node.func)}")
    assert not strays


def test_only_the_engine_speaks_the_monitors_language() -> None:
    strays = []
    for path, tree in sources():
        if path.startswith("engine/"):
            continue
        prose = docstring_nodes(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
                for word in node.value.split():
                    if MONITOR_WORDS.match(word):
                        strays.append(f"{path}:{node.lineno} {word}")
    assert not strays


def test_only_the_command_line_prints_and_exits() -> None:
    """Libraries raise. Programs of their own may end themselves: the daemon, and the probe run as a child."""
    strays = []
    for path, tree in sources():
        if path.startswith("cli/") or path in ("daemon.py", "engine/kvmprobe.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                strays.append(f"{path}:{node.lineno} print")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.exit", "os._exit"):
                strays.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not strays


def facts(error: type[InsulaError]) -> tuple[str, str, int, int]:
    return error.code, error.family, error.exit_status, error.http_status


def render_row(code: str, family: str, exit_status: int, http_status: int) -> str:
    """The error as a line of the table; the docstring serves until somebody says it better."""
    meaning = " ".join((REGISTRY[code].__doc__ or "").strip().split("\n\n")[0].split())
    return f"| `{code}` | {family} | {exit_status} | {http_status} | {meaning} |"


def real_errors() -> set[tuple[str, str, int, int]]:
    import_all()
    return {facts(error) for error in REGISTRY.values() if error.__module__.startswith("insula.")}


def test_every_error_is_documented() -> None:
    line = re.compile(r"^\| `([a-z0-9-]+)` \| (\w+) \| (\d+) \| (\d+) \| \S.*\|$", re.MULTILINE)
    documented = {
        (code, family, int(exit_status), int(http_status))
        for code, family, exit_status, http_status in line.findall(ERRORS_TABLE.read_text())
    }
    missing = [render_row(*error) for error in sorted(real_errors() - documented)]
    assert not missing, "add to docs/reference/errors.md:\n" + "\n".join(missing)
    assert not documented - real_errors(), "no longer true in docs/reference/errors.md"


def test_every_error_belongs_to_a_family_and_says_what_it_means() -> None:
    import_all()
    for code, error in REGISTRY.items():
        if not error.__module__.startswith("insula."):
            continue
        assert re.fullmatch(r"[a-z][a-z0-9-]*", code)
        assert error.family in ("invalid", "conflict", "unavailable", "bug"), code
        assert error.__doc__, f"{error.__qualname__} has no docstring"
        assert error.exit_status in (*range(64, 79), 126, 127, 130), code  # sysexits.h, and as shells say it


if __name__ == "__main__":  # prints the whole table anew
    FLOORS = ("invalid", "conflict", "unavailable", "bug")
    for known in sorted(real_errors(), key=lambda error: (FLOORS.index(error[1]), error[0])):
        print(render_row(*known))
