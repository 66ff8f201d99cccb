"""Query parameters and headers that several routes share, parsed once."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query

from insula.model.base import BadDocument

LONGEST_WAIT = 86400.0  # seconds; a client that wants more asks again

Wait = Annotated[
    float,
    Query(
        ge=0,
        le=LONGEST_WAIT,
        allow_inf_nan=False,
        description="Seconds to wait for the operation's end; 0: answer at once with the operation as it is.",
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="Refuse (412 `stale-generation`) unless the machine's generation is this one.",
        examples=['"3"'],
    ),
]


def parse_if_match(header: str | None) -> int | None:
    """The generation an If-Match header demands; '*' and no header demand none (RFC 9110 13.1.1)."""
    if header is None or header.strip() == "*":
        return None
    tag = header.strip().removeprefix("W/")
    digits = tag[1:-1] if len(tag) > 2 and tag[0] == tag[-1] == '"' else tag
    # isdecimal alone would accept digits of every script; no generation has more than 18 digits.
    if digits.isascii() and digits.isdecimal() and len(digits) <= 18:
        return int(digits)
    rule = 'must be one generation, such as "3", or *'
    raise BadDocument(
        f"The request is not valid: header.if-match: {rule}.",
        hint="The ETag of the machine is its generation.",
        fields=[{"path": "header.if-match", "rule": rule, "value": header}],
    )
