"""What an answer is, and an error as one: plain data, which goes between the parts of the application."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["JSON", "PNG", "Refusal", "Reply", "error"]

JSON = "application/json"
PNG = "image/png"
# Answers are about somebody's pictures: nobody on the way is to keep them, nor to take them for something else.
_ALWAYS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        content: the body.
        media_type: its type.
        headers: beside those that every answer has.
        latency: milliseconds by stage, of a picture that was looked at.
    """

    status: int
    content: bytes = field(repr=False)
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)

    def response(self) -> Any:
        """Starlette's own."""
        from starlette.responses import Response

        return Response(self.content, self.status, {**_ALWAYS, **self.headers}, self.media_type)


def error(status: int, text: str, **headers: str) -> Reply:
    """An error as an answer: ``{"status": ..., "error": ...}``. Underscores in the headers' names become dashes."""
    content = json.dumps({"status": status, "error": text}).encode()
    return Reply(status, content, headers={name.replace("_", "-"): value for name, value in headers.items()})


class Refusal(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.reply = error(status, text, **headers)
