"""Addresses without their secrets: every one passes through here before it is printed, logged, raised or written.

A password may hold any character, percent-encoded or as it was typed, and programs differ in where they see its end.
Whatever may belong to one is therefore left out, and so are queries and fragments, which carry the tokens of signed
addresses. The path stays, as nothing else tells one file or camera from another; a value in it that is called a
password or token does not. What is in doubt becomes ``***``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = ["redacted", "scrubbed", "scrubbed_error"]

HIDDEN = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2}|\A//")
# The last is what keyboards for Chinese and Japanese type.
_AT = re.compile("@|%40|\uff20")
_END = re.compile(r"[?#]|%3F|%23", re.IGNORECASE)
# Values that carry their name: in paths of cameras, parameters after semicolons, options after spaces.
_NAMED = re.compile(
    r"((?:pass(?:word|wd|phrase|code)?|pwd|token|secret|api_?key|access_?key|key|auth(?:orization)?|sig(?:nature)?"
    r"|credentials?|session(?:_?id)?|jsessionid)(?:=|%3D))[^/\s]*",
    re.IGNORECASE,
)
# In a text of somebody else's: up to what no address has in it unless it is quoted.
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}(?:://|%3A%2F%2F)[^\s'\"<>|`]+", re.IGNORECASE)
# What stands behind an address rather than in it.
_PUNCTUATION = ".,;:!)]}"
# A secret this long is looked for within words too.
_LONG = 6


def redacted(address: str) -> str:
    """The address as messages may show it: without user, password, query and fragment.

    Args:
        address: one address, whatever its scheme, or what somebody took for one; a path stays as it is.

    Example:
        >>> redacted("rtsp://admin:P@ssword@camera/live?token=abc")
        'rtsp://camera/live'
        >>> redacted("https://example.org/a.pth?X-Amz-Signature=abc")
        'https://example.org/a.pth'
    """
    found = _SCHEME.search(address)
    if found is None:
        return _without_scheme(address)
    scheme, rest = address[: found.end()], address[found.end() :]
    # Within other protocols, as in concat:http://... and [f=flv]rtmp://..., only their names stay.
    scheme = _NAMED.sub(rf"\1{HIDDEN}", _after_last_at(scheme))
    before, after = _around_last_at(rest)
    if before is not None and _END.search(before):
        # A password with a question mark in it, or a token with an "@": nothing tells which.
        return scheme + HIDDEN
    if before is not None and "/" in before:
        # A password with a slash in it, or an "@" in the path.
        scheme += f"{HIDDEN}@"
    end = _END.search(after)
    after = re.split(r"\s", after[: end.start()] if end else after, maxsplit=1)[0]
    return scheme + _NAMED.sub(rf"\1{HIDDEN}", after)


def scrubbed(text: str, *addresses: str) -> str:
    """A text of somebody else's, such as an error of FFmpeg's or urllib's, without secrets.

    Args:
        text: whatever it is.
        addresses: those that it may be about; their secrets are hidden however the text has them, quoted, decoded, or
            without the rest of the address. Other addresses are found by their form.
    """
    for address in addresses:
        for form in _forms(address):
            text = text.replace(form, redacted(address))
    text = _IN_TEXT.sub(_replaced, text)
    for secret in sorted({secret for address in addresses for secret in _secrets(address)}, key=len)[::-1]:
        # One of a few letters may be part of any word.
        pattern = re.escape(secret) if len(secret) >= _LONG else rf"(?<!\w){re.escape(secret)}(?!\w)"
        text = re.sub(pattern, HIDDEN, text)
    return text


def scrubbed_error(error: BaseException, *addresses: str) -> BaseException:
    """The error itself, its text and those of the errors that led to it without the secrets of `addresses`."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        waiting += [current.__cause__, current.__context__]
        current.args = tuple(_scrubbed_value(item, addresses, waiting) for item in current.args)
        # OSError keeps its texts apart from its arguments; so do FFmpeg's and urllib's errors.
        for name in ("filename", "filename2", "strerror", "reason", "url", "msg", "log", "line", "__notes__"):
            value = getattr(current, name, None)
            if isinstance(value, (str, bytes, tuple, list, BaseException)):
                replaced = _scrubbed_value(value, addresses, waiting)
                if replaced != value:
                    # Some extension types take it from their arguments.
                    with suppress(AttributeError, TypeError):
                        setattr(current, name, replaced)
    return error


def _scrubbed_value(value: object, addresses: Iterable[str], errors: list[BaseException | None]) -> object:
    if isinstance(value, BaseException):
        errors.append(value)
    elif isinstance(value, str):
        return scrubbed(value, *addresses)
    elif isinstance(value, bytes):
        return scrubbed(value.decode("utf-8", "surrogateescape"), *addresses).encode(
            "utf-8", "surrogateescape"
        )
    elif isinstance(value, (tuple, list)):
        items = [_scrubbed_value(item, addresses, errors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _without_scheme(text: str) -> str:
    """A path, unless it looks like an address whose scheme was forgotten: ``user:password@camera/live``."""
    before, after = _around_last_at(text)
    # A drive's letter is not a user's name.
    if before is not None and re.search(r"(?<!\A[A-Za-z]):|%3A", before, re.IGNORECASE):
        return f"{HIDDEN}@" + _NAMED.sub(rf"\1{HIDDEN}", after)
    return _NAMED.sub(rf"\1{HIDDEN}", text) if _END.search(text) else text


def _around_last_at(text: str) -> tuple[str | None, str]:
    """What is before the last "@", None without one, and what is after it: FFmpeg, VLC and curl take the last."""
    found = list(_AT.finditer(text))
    return (text[: found[-1].start()], text[found[-1].end() :]) if found else (None, text)


def _after_last_at(text: str) -> str:
    return _around_last_at(text)[1]


def _replaced(found: re.Match[str]) -> str:
    text = found[0]
    bare = text.rstrip(_PUNCTUATION)
    plain = bare if "://" in bare else unquote(bare)
    return redacted(plain) + text[len(bare) :]


def _forms(address: str) -> list[str]:
    """How a text may have a whole address, the longest first."""
    forms = {address, repr(address)[1:-1], unquote(address), quote(address, safe=""), quote(address)}
    # pathlib makes one slash of two.
    forms |= {re.sub(r"/{2,}", "/", form) for form in list(forms)}
    return sorted((form for form in forms if form and form != redacted(address)), key=len, reverse=True)


def _secrets(address: str) -> set[str]:
    """What of an address nobody may read, in the forms in which a text may have it."""
    found = _SCHEME.search(address)
    rest = address[found.end() :] if found else address
    secrets: set[str] = set()
    before, after = _around_last_at(rest)
    if before is not None and (found or ":" in before):
        secrets |= {before, *before.split(":", 1)[1:]}
        # Programs that see the end of the password elsewhere have parts of it for hosts, ports and paths.
        for part in re.split(r"[@/?#:]", before.split(":", 1)[-1]):
            secrets.add(part)
    end = _END.search(after)
    if end:
        tail = after[end.end() :]
        secrets.add(tail)
        for part in re.split(r"[&;#?]", tail):
            secrets |= {part, part.partition("=")[2]}
    for match in _NAMED.finditer(rest):
        secrets.add(re.split(r"=|%3D", match[0], maxsplit=1, flags=re.IGNORECASE)[1])
    forms = set()
    for secret in secrets:
        forms |= {secret, unquote(secret), unquote_plus(secret), quote(secret, safe=""), quote_plus(secret)}
        forms.add(repr(secret)[1:-1])
    # A flag such as "1" or "true" tells nothing, and is in every text.
    return {form for form in forms if len(form) > 2 and form.lower() not in ("true", "false", "none")}
