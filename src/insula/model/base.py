"""The base of everything stored or sent: frozen, no unknown fields, named and versioned when stored."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from insula.kit.errors import InsulaError, Invalid
from insula.kit.units import format_duration, format_size, parse_duration, parse_size

# RFC 1123 label: what a host name part may be, so that every machine's name can be its host name.
_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class BadDocument(Invalid):
    """A document with faulty fields; `fields` lists every fault with its path, rule and value."""

    code = "bad-document"


class BadName(Invalid):
    """A name that is not a DNS label."""

    code = "bad-name"


def check_name(name: str) -> str:
    """The name, if it is a DNS label (RFC 1123: a-z, 0-9, '-', at most 63). Raises ValueError."""
    if _DNS_LABEL.fullmatch(name) is None:
        raise ValueError(
            f"'{name}' is not a DNS label: use a-z, 0-9 and '-', at most 63 characters, "
            "beginning and ending with a letter or digit"
        )
    return name


def require_name(name: str, what: str = "machine") -> str:
    """The name, or BadName told to a person."""
    try:
        return check_name(name)
    except ValueError:
        suggestion = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:63].strip("-")
        raise BadName(
            f"'{name}' cannot be the name of a {what}: it is not a DNS label.",
            hint="Use a-z, 0-9 and '-', at most 63 characters, beginning and ending with a letter or digit"
            + (f", for example '{suggestion}'." if suggestion else "."),
        ) from None


def new_uid() -> str:
    """A fresh identifier: 16 hex digits, never used again and never shown unless asked for."""
    return secrets.token_hex(8)


def _refuse_as_value_error(parse: Any) -> Any:
    def parsed(value: Any) -> Any:
        try:
            return parse(value)
        except InsulaError as error:
            raise ValueError(error.message) from error

    return parsed


Name = Annotated[str, AfterValidator(check_name)]
Size = Annotated[int, BeforeValidator(_refuse_as_value_error(parse_size))]  # bytes; accepts "512MiB"
Duration = Annotated[float, BeforeValidator(_refuse_as_value_error(parse_duration))]  # seconds; accepts "10s"


class Value(BaseModel):
    """A frozen value; two with the same fields are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_timedelta="float")

    def changed(self, **fields: Any) -> Self:
        """A copy with some fields changed, validated like any other."""
        return type(self).model_validate({**dict(self), **fields})


class Document(Value):
    """What is stored under (kind, uid). `generation` rises with each change of what somebody wants."""

    kind: ClassVar[str]
    stored_version: ClassVar[int] = 1
    names_are_unique: ClassVar[bool] = False  # within a project

    uid: str
    project: str = "default"
    name: str
    generation: int = 1
    created: datetime

    @classmethod
    def upgrade(cls, stored: dict[str, Any], version: int) -> dict[str, Any]:
        """The stored fields of an older version as this version's; the one place where that is known."""
        return stored


V = TypeVar("V", bound=BaseModel)


def parse(kind: type[V], data: Mapping[str, Any], what: str) -> V:
    """The data as a value of `kind`. Raises BadDocument with every fault at once: path, rule, value."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise bad_document(error.errors(include_url=False), what) from None


def bad_document(faults: Sequence[Any], what: str) -> BadDocument:
    """The error that tells all faults pydantic found, in the order of the fields."""
    fields = []
    for fault in faults:
        path = ".".join(str(part) for part in fault["loc"]) or "."
        rule = "unknown field" if fault["type"] == "extra_forbidden" else str(fault["msg"])
        value = fault.get("input")
        shown = value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)[:200]
        fields.append({"path": path, "rule": rule.removeprefix("Value error, "), "value": shown})
    first = fields[0]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return BadDocument(
        f"The {what} is not valid: {first['path']}: {first['rule']}{more}.",
        hint="Correct every field that is listed." if len(fields) > 1 else "Correct that field.",
        fields=fields,
    )


__all__ = [
    "BadDocument",
    "BadName",
    "Document",
    "Duration",
    "Name",
    "Size",
    "Value",
    "bad_document",
    "check_name",
    "format_duration",
    "format_size",
    "new_uid",
    "parse",
    "require_name",
]
