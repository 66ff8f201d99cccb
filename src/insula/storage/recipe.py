"""Recipes: how an image is made from a distribution's packages; TOML that a user can write too.

    InitramfsRecipe  kernel + initramfs, lives in memory, boots directly (micro)
    DiskRecipe       a disk with its own boot loader, boots from it or directly (debian-12)

A recipe may begin with `extends = "NAME"`: lists are then appended to the other's, tables merged, all else
replaced. The reference with every field: docs/reference/recipes.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from insula.kit.errors import Invalid, NotFound, nearest
from insula.model.base import BadDocument, Name, Size, Value, parse
from insula.model.image import AgentProtocol, BootMode, ImageDefaults

BUILT_IN = Path(__file__).parent / "recipes"
LOWEST_DISK = 512 * 2**20  # a minimal Debian with kernel and boot loader does not fit into less

# Words that reach command lines: never an option, never a shell's business.
PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]+$")]
SuiteName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9.-]*$")]
ModulePattern = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_*?\[\]-]+$")]


class RecipeNotFound(NotFound):
    """There is no recipe of this name."""

    code = "recipe-not-found"


class BadRecipe(Invalid):
    """A recipe that is not TOML, extends itself, or names a file that is not there."""

    code = "bad-recipe"


class RecipeFile(Value):
    """A file to put into the image: either its content, or the path of a source file beside the recipe."""

    path: str = Field(pattern=r"^/.*[^/]$")
    mode: str = Field(default="0644", pattern=r"^0?[0-7]{3,4}$")
    content: str | None = None
    source: Path | None = None

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if ".." in path.split("/") or "//" in path:
            raise ValueError("must be a plain absolute path, without '..' or '//'")
        return path

    @model_validator(mode="after")
    def _has_one_origin(self) -> RecipeFile:
        if (self.content is None) == (self.source is None):
            raise ValueError("needs either content or source")
        return self

    @property
    def permissions(self) -> int:
        return int(self.mode, 8)

    def read(self) -> bytes:
        """The content, wherever it is kept."""
        return self.content.encode() if self.content is not None else (self.source or Path()).read_bytes()


class BaseRecipe(Value):
    """What both kinds say. kernel: package of the kernel. kernel_arguments: for every boot.

    mirrors: apt sources ("deb URI SUITE main" or a URI); empty: the host's own where it runs the same
    distribution, else the distribution's.
    """

    name: Name
    summary: str = ""
    os: str
    suite: SuiteName
    components: tuple[str, ...] = ("main",)
    mirrors: tuple[str, ...] = ()
    packages: tuple[PackageName, ...] = ()
    kernel: PackageName
    kernel_arguments: str = ""
    agents: tuple[AgentProtocol, ...] = ()
    default_user: str = "root"
    minimum_memory: Size = 64 * 2**20
    defaults: ImageDefaults = ImageDefaults()
    files: tuple[RecipeFile, ...] = ()


class InitramfsRecipe(BaseRecipe):
    """A system that is unpacked into memory. modules: names of kernel modules ('virtio_*'); what they
    need goes in too.

    The files of `packages` and the libraries that their programs need go in, nothing else of their
    dependencies. compression: of the initramfs.
    """

    kind: Literal["initramfs"]
    modules: tuple[ModulePattern, ...] = ()
    compression: Literal["none", "gzip", "zstd"] = "none"

    @property
    def boots(self) -> tuple[BootMode, ...]:
        return ("direct",)


class DiskRecipe(BaseRecipe):
    """A system on a disk of `disk_size`. modules: what its initramfs must hold to find the disk.

    commands: shell lines run inside, in order, after the packages. mask: systemd units that must not start.
    boot_wait: seconds the boot loader waits for a key. cloud_init: whether it is among the packages.
    """

    kind: Literal["disk"]
    disk_size: Size = Field(default=4 * 2**30, ge=LOWEST_DISK)
    modules: tuple[ModulePattern, ...] = ()
    commands: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    boot_wait: int = Field(default=0, ge=0, le=60)
    cloud_init: bool = True

    @property
    def boots(self) -> tuple[BootMode, ...]:
        return ("direct", "disk")


Recipe = InitramfsRecipe | DiskRecipe
KINDS: dict[str, type[InitramfsRecipe] | type[DiskRecipe]] = {
    "initramfs": InitramfsRecipe,
    "disk": DiskRecipe,
}


def find_recipe(name: str, directories: Sequence[Path] = ()) -> Recipe:
    """The recipe NAME.toml of the first directory that has it, the built-in ones last.

    Raises RecipeNotFound (with the nearest name), BadRecipe and BadDocument (every faulty field at once).
    """
    path = _find_file(name, directories)
    return _parse_recipe(_load(path, directories, ()), path)


def list_recipes(directories: Sequence[Path] = ()) -> list[Recipe]:
    """Every recipe that can be built, sorted by name. A faulty one raises as in find_recipe."""
    return [find_recipe(name, directories) for name in sorted(recipe_names(directories))]


def recipe_names(directories: Sequence[Path] = ()) -> set[str]:
    """The names of all recipes, faulty ones too."""
    places = [*directories, BUILT_IN]
    return {path.stem for place in places if place.is_dir() for path in place.glob("*.toml")}


def _find_file(name: str, directories: Sequence[Path], skip: Iterable[Path] = ()) -> Path:
    names = recipe_names(directories)
    if name in names:
        for directory in [*directories, BUILT_IN]:
            path = directory / f"{name}.toml"
            if path.is_file() and path not in skip:
                return path
    guess = nearest(name, sorted(names))
    raise RecipeNotFound(
        f"There is no recipe '{name}'.",
        hint=(f"Did you mean '{guess}'? " if guess else "") + f"Recipes: {', '.join(sorted(names))}.",
    )


def _load(path: Path, directories: Sequence[Path], seen: tuple[Path, ...]) -> dict[str, Any]:
    """The recipe's data with what it extends merged in. A recipe may extend another one of its own name."""
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRecipe(f"The recipe '{path}' is not TOML: {error}.", hint="See https://toml.io.") from error
    files = data.get("files")
    for file in files if isinstance(files, list) else ():
        if isinstance(file, dict) and isinstance(file.get("source"), str):
            file["source"] = path.parent / file["source"]
    extended = data.pop("extends", None)
    if extended is None:
        return data
    seen = (*seen, path)
    try:
        base_path = _find_file(str(extended), directories, skip=seen)
    except RecipeNotFound:
        if any(one.stem == extended for one in seen):
            raise BadRecipe(f"The recipe '{path.stem}' extends itself.") from None
        raise
    return _merge(_load(base_path, directories, seen), data)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = base.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            merged[key] = _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            merged[key] = [*known, *value]
        else:
            merged[key] = value
    return merged


def _parse_recipe(data: dict[str, Any], path: Path) -> Recipe:
    what = f"recipe '{path.stem}'"
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        rule = f"must be one of {', '.join(KINDS)}"
        fields = [{"path": "kind", "rule": rule, "value": kind}]
        raise BadDocument(f"The {what} is not valid: kind: {rule}.", fields=fields)
    recipe: Recipe = parse(KINDS[kind], {**data, "name": data.get("name", path.stem)}, what)
    if recipe.name != path.stem:
        raise BadRecipe(
            f"The recipe in '{path}' is called '{recipe.name}'.",
            hint=f"Leave out the line 'name', or rename the file to {recipe.name}.toml.",
        )
    for file in recipe.files:
        if file.source is not None and not file.source.is_file():
            raise BadRecipe(
                f"The recipe '{recipe.name}' needs the file '{file.source}', which is not there.",
                hint="A source is a path relative to the recipe's directory.",
            )
    return recipe
