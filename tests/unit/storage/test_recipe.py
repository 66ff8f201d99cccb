"""Recipes: the built-in ones, a user's own, and what is said of faulty ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.model.base import BadDocument
from insula.storage.recipe import (
    BadRecipe,
    DiskRecipe,
    InitramfsRecipe,
    RecipeNotFound,
    find_recipe,
    list_recipes,
)

SMALL = """
kind = "disk"
os = "Debian 13"
suite = "trixie"
kernel = "linux-image-cloud-amd64"
"""


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


def test_the_built_in_recipes_are_valid() -> None:
    by_name = {recipe.name: recipe for recipe in list_recipes()}
    assert isinstance(by_name["micro"], InitramfsRecipe)
    assert isinstance(by_name["debian-12"], DiskRecipe)
    assert by_name["debian-12"].boots == ("direct", "disk")
    assert by_name["micro"].defaults.memory_bytes == 512 * 2**20


def test_the_scripts_of_micro_are_where_init_looks_for_them() -> None:
    files = {file.path: file for file in find_recipe("micro").files}
    inittab = files["/etc/inittab"].read().decode()
    for name in ("late", "agent", "console", "shutdown-hook"):
        assert f"/usr/lib/insula/{name}" in inittab
        assert files[f"/usr/lib/insula/{name}"].permissions == 0o755


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "debian-13", SMALL + 'disk_size = "8GiB"\n')
    recipe = find_recipe("debian-13", [tmp_path])
    assert isinstance(recipe, DiskRecipe)
    assert recipe.disk_size == 8 * 2**30
    assert {"debian-13", "micro"} <= {one.name for one in list_recipes([tmp_path])}


def test_extending_appends_lists_merges_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    write(
        tmp_path,
        "lab",
        'extends = "micro"\nsummary = "Mine"\npackages = ["iperf3"]\n[defaults]\ncpus = 2\n'
        '[[files]]\npath = "/etc/motd"\ncontent = "hello"\n',
    )
    base, lab = find_recipe("micro"), find_recipe("lab", [tmp_path])
    assert lab.packages == (*base.packages, "iperf3")
    assert (lab.summary, lab.defaults.cpus) == ("Mine", 2)
    assert lab.defaults.memory_bytes == base.defaults.memory_bytes
    assert lab.files[:-1] == base.files
    assert lab.files[-1].read() == b"hello"


def test_a_recipe_may_extend_the_built_in_one_of_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, "micro", 'extends = "micro"\npackages = ["strace"]\n')
    assert find_recipe("micro", [tmp_path]).packages[-1] == "strace"


def test_a_source_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "hello.sh").write_text("#!/bin/sh\n")
    write(tmp_path, "own", SMALL + '[[files]]\npath = "/hello"\nsource = "hello.sh"\nmode = "0755"\n')
    file = find_recipe("own", [tmp_path]).files[0]
    assert (file.read(), file.permissions) == (b"#!/bin/sh\n", 0o755)


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(RecipeNotFound) as caught:
        find_recipe("debain-12")
    assert caught.value.message == "There is no recipe 'debain-12'."
    assert "Did you mean 'debian-12'?" in caught.value.hint


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    write(
        tmp_path,
        "bad",
        SMALL + 'disk_size = "1MiB"\ncolour = "red"\npackages = ["--option"]\n'
        '[[files]]\npath = "/etc/../x"\ncontent = ""\n',
    )
    with pytest.raises(BadDocument) as caught:
        find_recipe("bad", [tmp_path])
    rules = {fault["path"]: fault["rule"] for fault in caught.value.fields}
    assert rules == {
        "packages.0": "String should match pattern '^[a-z0-9][a-z0-9.+-]+$'",
        "files.0.path": "must be a plain absolute path, without '..' or '//'",
        "disk_size": "Input should be greater than or equal to 536870912",
        "colour": "unknown field",
    }
    assert caught.value.message.startswith("The recipe 'bad' is not valid: packages.0:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = ", "is not TOML"),
        ('extends = "nothing"', "There is no recipe 'nothing'."),
        ('extends = "bad"', "The recipe 'bad' extends itself."),
        (SMALL + 'name = "other"', "is called 'other'"),
        (SMALL + '[[files]]\npath = "/x"\nsource = "gone"', "which is not there"),
        ('os = "x"', "kind: must be one of initramfs, disk"),
        (SMALL + '[[files]]\npath = "/x"', "needs either content or source"),
    ],
)
def test_faults_are_told_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "bad", text)
    with pytest.raises((BadRecipe, BadDocument, RecipeNotFound)) as caught:
        find_recipe("bad", [tmp_path])
    assert message in caught.value.message
