"""Fetches one file over http or https so that an interruption costs nothing and a half file is never taken for whole.

Bytes go to ``<name>.part``; what the server says of the file's version is kept beside it, so that a later start can ask
for the rest of the same version. Only a complete file gets its name.
"""

from __future__ import annotations

import email.message
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from fai_fast import cache
from fai_fast._core import __version__
from fai_fast._foreign import from_signal_handler
from fai_fast._redaction import redacted, scrubbed, scrubbed_error
from fai_fast.errors import WeightsError

__all__ = ["DEFAULT", "Transfer", "cached_path", "download"]

_log = logging.getLogger("fai_fast")
_CHUNK = 1 << 18
_MAX_REDIRECTS = 5
# Answers that another try may well change.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Transfer:
    """How patient a download is.

    Attributes:
        timeout: seconds that a connection, or the next bytes, may take.
        retries: attempts in a row that may fail without having brought ``worthwhile`` bytes.
        backoff: seconds before the first retry, doubled before each next.
        longest_backoff: seconds at most before a retry.
        worthwhile: bytes that make an interrupted attempt count as progress.
    """

    timeout: float = 30.0
    retries: int = 4
    backoff: float = 1.0
    longest_backoff: float = 20.0
    worthwhile: int = 1 << 20


DEFAULT = Transfer()


class _Passing(Exception):
    """A failure that another attempt may not have."""


class _Changed(Exception):
    """What is in the .part file is not the beginning of what the server has now."""


def cached_path(url: str, folder: Path) -> Path:
    """Where in the cache the file behind `url` belongs: readable, and different for different addresses."""
    # File names are in logs and listings too.
    parts = [part for part in unquote(urlsplit(redacted(url)).path).split("/") if part]
    name = _plain(parts[-1]) if parts else ""
    owner = _plain(parts[-2]) if len(parts) > 1 else ""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return folder / "weights" / (f"{owner}-{digest}" if owner else digest) / (name or "weights")


def download(
    url: str,
    path: Path,
    *,
    progress: bool = True,
    transfer: Transfer | None = None,
    problem: Callable[[Path], str] = lambda path: "",
) -> cache.Record:
    """Fetches `url` to `path`, and writes its record. The caller holds the lock of `path`.

    Args:
        url: http or https.
        path: where the whole file goes; its folder exists.
        progress: whether to draw a bar, where standard error is a terminal.
        transfer: how patient to be; None for :data:`DEFAULT`.
        problem: looks at the complete file, and says what is wrong with it; empty if nothing is.

    Raises:
        WeightsError: the server does not have it, does not answer, or the disk does not take it; the text says what to
            do.
    """
    transfer = transfer or DEFAULT
    part = path.with_name(path.name + cache.PARTIAL_SUFFIX)
    failures = 0
    try:
        while True:
            before = _size(part)
            try:
                info = _attempt(url, part, progress, transfer)
                break
            except _Changed:
                _log.warning("%s changed since its download began: starting again", redacted(url))
                _discard(part)
                failures += 1
                reason: Exception | str = "it changes while it is being downloaded"
            except _Passing as error:
                reason = error
                failures = 1 if _size(part) >= before + transfer.worthwhile else failures + 1
            if failures > transfer.retries:
                raise WeightsError(_failed(url, path, f"{reason} ({failures} attempts)"))
            pause = min(transfer.backoff * 2 ** (failures - 1), transfer.longest_backoff)
            said = scrubbed(str(reason), url)
            _log.warning("%s: %s; trying again in %.3g s", redacted(url), said, pause)
            time.sleep(pause)
        if wrong := problem(part):
            _discard(part)
            raise WeightsError(_failed(url, path, f"what the server sent {wrong}"))
        record = cache.Record.of(part, {"url": redacted(url)}, {**info, "mtime_ns": part.stat().st_mtime_ns})
        cache.remove_leftovers(path)
        record.write(cache.record_path(path))
        os.replace(part, path)
        cache.record_path(part).unlink(missing_ok=True)
        return record
    except OSError as error:
        _let_pass(error)
        raise WeightsError(_failed(url, path, cache.explain(error, path.parent))) from error


def _attempt(url: str, part: Path, progress: bool, transfer: Transfer) -> dict[str, Any]:
    """One request; returns what the server said of the file once all of it is there."""
    start, validator, said = _resumable(part)
    if start and start == said.get("total"):
        return said
    request = urllib.request.Request(
        url, headers={"User-Agent": f"fai_fast/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator)
    try:
        response = _opener().open(request, timeout=transfer.timeout)
    except urllib.error.HTTPError as error:
        with error:
            scrubbed_error(error, url)
            if error.code == 416 and start:
                raise _Changed from None
            if error.code in _PASSING:
                raise _Passing(f"the server answered {error.code} {error.reason}") from None
            raise WeightsError(
                _failed(url, _whole(part), f"the server answered {error.code} {error.reason}")
            ) from None
    except (_Refused, ValueError) as error:
        _let_pass(error)
        raise WeightsError(_failed(url, _whole(part), str(scrubbed_error(error, url)))) from None
    except (OSError, http.client.HTTPException) as error:
        _let_pass(error)
        scrubbed_error(error, url)
        # Its reason is in the text; behind it stand sixty lines of sockets and urllib.
        raise _unreachable(url, part, error) from None
    with response:
        start, total = _extent(url, part, response, start, validator)
        info = {
            "url": redacted(url),
            "from": redacted(response.geturl()),
            "etag": response.headers.get("ETag"),
            "last_modified": response.headers.get("Last-Modified"),
            "total": total,
        }
        if start == 0:
            _discard(part)
            cache.record_path(part).write_text(json.dumps(info), "utf-8")
        _check_space(part, total, start)
        _copy(url, response, part, start, total, progress)
    if total is not None and _size(part) != total:
        raise _Passing(f"the server closed the connection after {_size(part)} of {total} bytes")
    if not _size(part):
        raise _Passing("the server sent an empty file")
    return info


def _extent(
    url: str, part: Path, response: http.client.HTTPResponse, start: int, validator: str
) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is, if the server says."""
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise WeightsError(
            _failed(url, _whole(part), f"the server sent it encoded as {encoding!r}, which was not asked for")
        )
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    if response.status == 200:  # also what a server answers that knows no ranges, or whose file changed
        if start:
            _log.warning("%s: the server sends it from its beginning again", redacted(url))
        return 0, size
    if response.status != 206 or not start:
        raise WeightsError(_failed(url, _whole(part), f"the server answered {response.status}, expected 200"))
    match = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
    )
    # Some servers know Range and not If-Range: what they say of the version must be what was said before.
    if match is None or int(match[1]) != start or validator not in _validators(response.headers):
        raise _Changed
    if match[2] == "*":
        return start, None if size is None else start + size
    return start, int(match[2])


def _copy(
    url: str, response: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: bool
) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]

    _log.info("downloading %s to %s", redacted(url), part)
    bar = tqdm(
        desc=_whole(part).parent.name,
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: only where standard error is a terminal
    )
    with bar, part.open("ab") as file:
        while True:
            try:
                chunk = response.read1(_CHUNK)  # what is there, not what is there only after a while
            except (OSError, http.client.HTTPException) as error:
                _let_pass(error)
                raise _Passing(f"the connection broke: {_said(error)}") from error
            if not chunk:
                break
            file.write(chunk)
            file.flush()  # so that a killed process leaves all that came
            bar.update(len(chunk))
        os.fsync(file.fileno())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but only to http and https, and never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request:
        target = urljoin(req.full_url, newurl)
        before, after = urlsplit(req.full_url).scheme, urlsplit(target).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise _Refused(
                f"it redirects to {redacted(target)}; only http and https are followed, and never https to http"
            )
        count = getattr(req, "redirects", 0) + 1
        if count > _MAX_REDIRECTS:
            raise _Refused(f"it redirects more than {_MAX_REDIRECTS} times")
        following = urllib.request.Request(target, headers=req.headers)
        following.redirects = count  # type: ignore[attr-defined]
        return following

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:
        # The base class refuses some schemes by an HTTPError of its own, and counts by address.
        location = headers.get("Location")
        if not location:
            raise _Refused(f"the server answered {code} without a Location")
        with fp:
            following = self.redirect_request(req, fp, code, msg, headers, location)
        return self.parent.open(following, timeout=req.timeout)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Refused(Exception):
    """The server wants something that is not done."""


def _opener() -> urllib.request.OpenerDirector:
    """What urllib.request.urlopen has, without file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _unreachable(url: str, part: Path, error: Exception) -> Exception:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError)):
        return WeightsError(_failed(url, _whole(part), _said(reason)))
    return _Passing(f"no answer: {_said(reason)}")


def _let_pass(error: BaseException) -> None:
    """Raises what a signal handler raised: a time limit is a TimeoutError too, and urllib wraps it."""
    if (found := from_signal_handler(error)) is not None:
        raise found


def _said(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)


def _failed(url: str, path: Path, reason: str) -> str:
    return (
        f"weights: {redacted(url)} could not be downloaded: {scrubbed(reason, url)}. Try again later (what came so far "
        f"is kept), or get the file another way and put it at {path}, or pass its path as weights="
    )


def _resumable(part: Path) -> tuple[int, str, dict[str, Any]]:
    """How much of the file is there, by what the server can tell that it is still the same, and what it said of it."""
    size = _size(part)
    if size:
        try:
            items = json.loads(cache.record_path(part).read_text("utf-8"))
            headers = email.message.Message()
            headers["ETag"] = str(items["etag"] or "")
            headers["Last-Modified"] = str(items["last_modified"] or "")
            if validators := _validators(headers):
                return size, validators[0], items
        except (OSError, ValueError, KeyError, TypeError) as error:
            _let_pass(error)
        _log.info("%s cannot be resumed: the server did not say which version of the file it is", part)
    return 0, "", {}


def _validators(headers: email.message.Message) -> list[str]:
    """What identifies a file's version byte by byte; weak ETags do not."""
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    return [
        value for value in (etag if etag.startswith('"') else "", modified) if value and value.isprintable()
    ]


def _check_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise WeightsError(
            f"weights: {total - start} bytes are still to be downloaded to {part.parent}, where {free} are free: free "
            "some, or set FAI_FAST_CACHE or cache_dir= to a folder on another disk"
        )


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    cache.record_path(part).unlink(missing_ok=True)


def _whole(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(cache.PARTIAL_SUFFIX))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:80]
