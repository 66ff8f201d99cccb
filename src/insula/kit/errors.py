"""The four families every error of Insula belongs to, and how an error is told.

    InsulaError
    ├── Invalid       what was asked can never be: a bad value, an unknown name
    ├── Conflict      not in this state: already running, name taken, older generation
    ├── Unavailable   not now: no agent, no memory, QEMU missing; try again or mend the host
    └── Bug           ours: report it

Each room subclasses a family and gives its errors a stable `code`. The sentence names the user's own values
and never contains the cause's text; `hint` says what to do; `evidence` holds what a person needs to see why
(argv, exit status, last stderr, serial tail). The CLI prints the chain once, the server sends it as
problem+json, and the SDK rebuilds the same class from the code.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing.TYPE_CHECKING; importing typing would be a third of `insula ls`
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

REGISTRY: dict[str, type[InsulaError]] = {}


class InsulaError(Exception):
    """An error with a stable code, an exit status, an HTTP status, a hint and evidence.

    message: one capital sentence with the user's own values, ending in a full stop.
    hint: what to do, ready to paste where possible; "" when there is nothing to say.
    evidence: JSON-able values that show why (e.g. {"exit_status": 1, "stderr": "..."}).
    fields: for bad documents, one {"path", "rule", "value"} per fault, all of them at once.
    retry_after: seconds after which trying again makes sense, or None.
    """

    code: ClassVar[str] = "error"
    family: ClassVar[str] = "bug"
    exit_status: ClassVar[int] = 70
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        evidence: Mapping[str, Any] | None = None,
        fields: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.evidence: dict[str, Any] = dict(evidence or {})
        self.fields: list[dict[str, Any]] = [dict(field) for field in fields]
        self.retry_after = retry_after
        self.remote_causes: list[str] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = REGISTRY.get(cls.code)
        if "code" in cls.__dict__:
            if known is not None and known.__qualname__ != cls.__qualname__:
                raise TypeError(f"error code {cls.code!r} is used by both {known} and {cls}")
            REGISTRY[cls.code] = cls

    def to_problem(self) -> dict[str, Any]:
        """The error as a problem+json object (RFC 9457) with Insula's members `code`, `hint`, `evidence`."""
        problem: dict[str, Any] = {
            "type": f"urn:insula:error:{self.code}",
            "title": type(self).__name__,
            "status": self.http_status,
            "exit_status": self.exit_status,
            "code": self.code,
            "family": self.family,
            "detail": self.message,
            "hint": self.hint,
        }
        if self.evidence:
            problem["evidence"] = self.evidence
        if self.fields:
            problem["fields"] = self.fields
        if self.retry_after is not None:
            problem["retry_after"] = self.retry_after
        causes = self.causes()
        if causes:
            problem["causes"] = causes
        return problem

    def causes(self) -> list[str]:
        """The sentences of the chain below this error, outermost first."""
        if self.remote_causes is not None:
            return list(self.remote_causes)
        causes: list[str] = []
        cause = self.__cause__
        while cause is not None:
            causes.append(str(cause) or type(cause).__name__)
            cause = cause.__cause__
        return causes


class Invalid(InsulaError):
    """What was asked can never be done as it was said."""

    code = "invalid"
    family = "invalid"
    exit_status = 64  # EX_USAGE of sysexits.h
    http_status = 422


class NotFound(Invalid):
    """The thing named does not exist."""

    code = "not-found"
    exit_status = 66  # EX_NOINPUT
    http_status = 404


class Conflict(InsulaError):
    """Not in this state."""

    code = "conflict"
    family = "conflict"
    exit_status = 73  # EX_CANTCREAT: the nearest sysexits number for 'the state forbids it'
    http_status = 409


class Unavailable(InsulaError):
    """Not now: try again, or mend the host."""

    code = "unavailable"
    family = "unavailable"
    exit_status = 69  # EX_UNAVAILABLE
    http_status = 503


class Bug(InsulaError):
    """A fault of Insula's own."""

    code = "bug"
    family = "bug"
    exit_status = 70  # EX_SOFTWARE
    http_status = 500


FAMILIES: dict[str, type[InsulaError]] = {c.family: c for c in (Invalid, Conflict, Unavailable, Bug)}


def error_from_problem(problem: Mapping[str, Any]) -> InsulaError:
    """Rebuild the error that `to_problem` described; an unknown code becomes its family."""
    code = str(problem.get("code", "bug"))
    kind = REGISTRY.get(code) or FAMILIES.get(str(problem.get("family")), Bug)
    if kind is Invalid and problem.get("status") == NotFound.http_status:
        kind = NotFound
    error = kind(
        str(problem.get("detail", "")),
        hint=str(problem.get("hint", "")),
        evidence=problem.get("evidence") or {},
        fields=problem.get("fields") or (),
        retry_after=problem.get("retry_after"),
    )
    # The class may live in a room this process never imports; what the other side said stays true.
    vars(error).update(
        code=code,
        http_status=int(problem.get("status", kind.http_status)),
        exit_status=int(problem.get("exit_status", kind.exit_status)),
        remote_causes=list(problem.get("causes") or ()),
    )
    return error


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name a person most likely meant, or None."""
    import difflib

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
