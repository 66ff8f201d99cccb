"""Downloading one file: resumed where it was left, from the first address that gives it, verified as it
comes.

    DIRECTORY/data        what has come so far
    DIRECTORY/state.json  the address it came from and that server's validator (ETag or Last-Modified)

A part is gone on with by Range and If-Range, so that a file which changed at the server begins anew. A part
that came from another address is gone on with too: the checksum says in the end whether it fitted, and if it
did not the file is fetched once more from its beginning. Runs in a thread; `stop` ends it between two pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from insula.kit.paths import write_atomically
from insula.kit.units import format_size
from insula.storage.checksums import Checksum
from insula.storage.conversion import RESERVE
from insula.storage.errors import ChecksumMismatch, DownloadFailed, ImageRefused, disk_full, free_bytes

DATA, STATE = "data", "state.json"
TIMEOUT = 15.0  # seconds without a byte after which a server is given up
ROUNDS = 3  # how often all addresses are tried, as long as nothing comes
MOST_BYTES = 2**40  # of one file
MOST_TEXT = 2**20  # bytes of a publisher's checksums
_PIECE = 2**20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Tell = Callable[[str, int, int | None], None]


class Stopped(Exception):
    """Somebody cancelled."""


class _Redirects(HTTPRedirectHandler):
    """Follows to http and https only, and never from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if req.type == "https" and not newurl.startswith("https://"):
            raise HTTPError(newurl, code, "leads from https to something less", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = build_opener(_Redirects)


@dataclass
class Download:
    """One file. tell(address, bytes so far, bytes in all or None) is called as it comes."""

    directory: Path
    urls: Sequence[str]
    expected: Checksum
    size: int | None
    tell: Tell
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def data(self) -> Path:
        return self.directory / DATA

    def run(self) -> Path:
        """The path of the file, complete and verified. Raises DownloadFailed, ChecksumMismatch, DiskFull,
        Stopped."""
        attempts: list[str] = []
        wrong: str | None = None
        for number in range(ROUNDS):
            for url in self.urls:
                if self.stop.wait(0.5 * number):
                    raise Stopped
                try:
                    digest = self._fetch_verified(url)
                except (OSError, HTTPException, ValueError) as error:
                    attempts.append(f"{url}: {error or type(error).__name__}")
                    continue
                if digest == self.expected.digest:
                    return self.data
                wrong = f"{url} gave {self.expected.algorithm}:{digest}"
                attempts.append(wrong)
            if wrong is not None:
                raise ChecksumMismatch(
                    f"What was downloaded is not what its publisher says: {self.expected} was expected.",
                    hint="The publisher may be exchanging the file just now: try again later. Nothing of it "
                    "was kept.",
                    evidence={"attempts": attempts},
                )
        raise DownloadFailed(
            f"The file could not be downloaded from {self.urls[0]}"
            + (f" or {len(self.urls) - 1} mirrors." if len(self.urls) > 1 else "."),
            hint="Look whether this host reaches it; what has come is kept for a day, and pulling again "
            "goes on there.",
            evidence={"attempts": attempts[-10:]},
        )

    def _fetch_verified(self, url: str) -> str:
        """The digest of the file from this address, fetched from its beginning where a part did not fit."""
        had = self._have()
        digest = self._fetch(url)
        if digest != self.expected.digest:
            self._forget()
            if had:
                digest = self._fetch(url)
                if digest != self.expected.digest:
                    self._forget()
        return digest

    def _fetch(self, url: str) -> str:
        have = self._have()
        request = Request(url, headers={"User-Agent": "insula", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            validator = self._validator(url)
            if validator:
                request.add_header("If-Range", validator)
        try:
            answer = _opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            if error.code == 416 and have:
                return str(self._hash_part(have).hexdigest())  # nothing comes after it: it may be complete
            raise
        with answer:
            start = _start_of(answer) if answer.status == 206 else 0
            if start not in (0, have):
                raise ValueError(f"the server gave bytes from {start} on, not from {have}")
            total = _total_of(answer, start)
            self._check_size(url, total)
            self._remember(url, answer.headers)
            return self._receive(url, answer, start, total)

    def _receive(self, url: str, answer: Any, start: int, total: int | None) -> str:
        digest = self._hash_part(start)
        with self.data.open("r+b" if self.data.exists() else "w+b") as stream:
            stream.truncate(start)
            stream.seek(start)
            at = start
            while piece := answer.read1(
                _PIECE
            ):  # what has come, be it little: a cancel must not wait for more
                if self.stop.is_set():
                    raise Stopped
                at += len(piece)
                self._check_size(url, at)
                stream.write(piece)
                digest.update(piece)
                self.tell(url, at, total)
            stream.flush()
            os.fdatasync(stream.fileno())
        if total is not None and at < total:
            raise ValueError(f"the connection ended after {format_size(at)} of {format_size(total)}")
        return str(digest.hexdigest())

    def _check_size(self, url: str, size: int | None) -> None:
        most = self.size or MOST_BYTES
        if size is not None and size > most:
            self._forget()
            raise ImageRefused(
                f"The server of {url} gives more than {format_size(most)}, which the file should have.",
                hint="The catalogue's size may be out of date.",
            )
        if free_bytes(self.directory) < RESERVE + max(0, (size or 0) - self._have()):
            raise disk_full(self.directory, (size or 0) + RESERVE, "the download")

    def _hash_part(self, size: int) -> Any:
        digest = hashlib.new(self.expected.algorithm)
        if size:
            with self.data.open("rb") as stream:
                left = size
                while left and (piece := stream.read(min(_PIECE, left))):
                    digest.update(piece)
                    left -= len(piece)
        return digest

    def _have(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def _validator(self, url: str) -> str:
        """What If-Range may say to this server: a strong ETag, or a date (RFC 9110 13.1.5)."""
        try:
            state = json.loads((self.directory / STATE).read_bytes())
        except (OSError, ValueError):
            return ""
        return str(state["validator"]) if state.get("url") == url else ""

    def _remember(self, url: str, headers: HTTPMessage) -> None:
        tag = headers.get("ETag", "")
        validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
        write_atomically(self.directory / STATE, json.dumps({"url": url, "validator": validator}))

    def _forget(self) -> None:
        self.data.unlink(missing_ok=True)
        (self.directory / STATE).unlink(missing_ok=True)


def fetch_text(url: str) -> str:
    """A short text, as publishers' checksums are. Raises DownloadFailed."""
    try:
        with _opener.open(Request(url, headers={"User-Agent": "insula"}), timeout=TIMEOUT) as answer:
            raw: bytes = answer.read(MOST_TEXT + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadFailed(
            f"The publisher's checksums could not be downloaded from {url}.",
            hint="Look whether this host reaches it; a proxy is taken from https_proxy.",
        ) from error
    if len(raw) > MOST_TEXT:
        raise DownloadFailed(f"What {url} gives is too long for checksums.")
    return raw.decode(errors="replace")


def _start_of(answer: Any) -> int:
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None:
        raise ValueError("the server does not say which part of the file it gives")
    return int(found[1])


def _total_of(answer: Any, start: int) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isascii() and length.isdecimal() else None


__all__ = ["Download", "Stopped", "fetch_text"]
