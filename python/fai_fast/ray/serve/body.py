"""A request's picture: its body, or the part of a form, read as it comes and no further than allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fai_fast._extras import install
from fai_fast.ray.serve.http import Refusal

__all__ = ["read_picture"]

_PARTS = ("file", "image")
# A form of one picture has one part, whose head is a line or two.
_MOST_PARTS, _MOST_HEAD = 16, 8192
_FORM = "multipart/form-data"
_EXPECTED = f"image/jpeg, image/png or another image, application/octet-stream, or {_FORM}"


async def read_picture(headers: Any, chunks: AsyncIterator[bytes], most: int) -> bytes:
    """The encoded picture of a request.

    Args:
        headers: of the request, by their names in any case.
        chunks: its body, as it comes.
        most: bytes that the body may have, the form around a picture included.

    Raises:
        Refusal: 413 as soon as it is known to be too long; 415 for a type or an encoding that is no picture's; 400
            where there is none, or the form is damaged.
        ImportError: a form came, and python-multipart is not installed.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "Content-Encoding: got a compressed body, expected the picture as it is")
    kind = headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    form = None
    if kind == _FORM:
        form = _Form(headers["content-type"])
    elif kind != "application/octet-stream" and not kind.startswith("image/"):
        hint = "; with curl: -H 'Content-Type: image/jpeg'" if kind.endswith("urlencoded") else ""
        raise Refusal(415, f"Content-Type: got {kind[:60]!r}, expected {_EXPECTED}{hint}")
    _check_length(headers.get("content-length"), most)
    body = bytearray()
    length = 0
    async for chunk in chunks:
        length += len(chunk)
        if length > most:
            raise Refusal(413, f"body: got more than {most} bytes, which is the limit here")
        if form is None:
            body += chunk
        else:
            form.write(chunk)
    if form is not None:
        return form.picture()
    if not body:
        raise Refusal(400, "body: got nothing, expected a picture")
    return bytes(body)


def _check_length(said: str | None, most: int) -> None:
    """What the header says, before anything is read; the server has refused what is no number."""
    if said is not None and said.isdecimal() and (len(said) > 18 or int(said) > most):
        raise Refusal(413, f"body: got {said[:30]} bytes, expected at most {most}")


class _Form:
    """The picture of a form, of which nothing else is kept."""

    def __init__(self, content_type: str) -> None:
        try:
            from python_multipart.multipart import MultipartParser, parse_options_header
        except ImportError as missing:
            raise ImportError(f"forms need python-multipart: {install('ray')}") from missing

        self._options = parse_options_header
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary or len(boundary) > 70:
            raise Refusal(400, f"Content-Type: got {_FORM} without a boundary of 1 to 70 characters")
        self._parts = 0
        self._head = 0
        self._field, self._value = bytearray(), bytearray()
        self._disposition = ""
        self._into: bytearray | None = None
        self._found: bytearray | None = None
        self._ended = False
        self._parser: Any = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._name,
                "on_header_value": self._text,
                "on_header_end": self._header,
                "on_headers_finished": self._headers,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except ValueError as wrong:  # of the parser's own kinds
            raise Refusal(400, f"body: the form is damaged: {wrong}") from None

    def picture(self) -> bytes:
        if not self._ended:
            raise Refusal(400, "body: the form is damaged: its end is missing")
        if self._found is None:
            raise Refusal(
                400, f"body: the form has no part {' or '.join(_PARTS)}, expected the picture as one"
            )
        if not self._found:
            raise Refusal(400, "body: the picture of the form is empty")
        return bytes(self._found)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise Refusal(400, f"body: got a form of more than {_MOST_PARTS} parts, expected one picture")
        self._head = 0
        self._disposition = ""
        self._into = None

    def _name(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._field, data, start, end)

    def _text(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._value, data, start, end)

    def _grow(self, to: bytearray, data: bytes, start: int, end: int) -> None:
        self._head += end - start
        if self._head > _MOST_HEAD:
            raise Refusal(400, f"body: got a part whose head is longer than {_MOST_HEAD} bytes")
        to += data[start:end]

    def _header(self) -> None:
        if self._field.strip().lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")
        self._field.clear()
        self._value.clear()

    def _headers(self) -> None:
        name = self._options(self._disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        if name not in _PARTS:
            raise Refusal(
                400, f"body: the form has a part {name[:40]!r}, expected only {' or '.join(_PARTS)}"
            )
        if self._found is not None:
            raise Refusal(400, "body: the form has more than one picture, expected one")
        self._found = self._into = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._into is not None:
            self._into += data[start:end]

    def _end(self) -> None:
        self._ended = True
