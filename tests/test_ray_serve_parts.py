"""fai_fast.ray.serve without Ray: its arguments, what a request may ask for, and how a body is read."""

from __future__ import annotations

import asyncio
import inspect
import json

import pytest
from fai_fast.images import TooLargeError, read_image
from fai_fast.ray.serve import app
from fai_fast.ray.serve.body import read_picture
from fai_fast.ray.serve.http import Refusal, error
from fai_fast.ray.serve.query import Query
from fai_fast.ray.serve.settings import Settings
from hypothesis import given
from hypothesis import strategies as st

# ------------------------------------------------------------------------------------------------ arguments


def test_texts_of_a_shell_and_values_of_a_file_are_the_same_settings():
    of_shell = Settings.read(
        {
            "model": "fai-mf-n-shapes", "threshold": "0.5", "classes": "disc,star", "top_k": "3",
            "im_size": "192x256", "num_replicas": "2", "num_cpus": "0.5", "max_batch_size": "4",
            "batch_wait_ms": "1e1", "max_pixels": "1000000",
        }
    )  # fmt: skip
    of_file = Settings.read(
        {
            "model": "fai-mf-n-shapes", "threshold": 0.5, "classes": ["disc,star"], "top_k": 3,
            "im_size": [192, 256], "num_replicas": 2, "num_cpus": 0.5, "max_batch_size": 4,
            "batch_wait_ms": 10, "max_pixels": 1000000, "weights": None,
        }
    )  # fmt: skip
    assert of_shell == of_file
    assert (of_shell.im_size, of_shell.num_replicas, of_shell.batch) == ((192, 256), 2, 4)
    assert Settings.read({"model": "a", "im_size": "640"}).im_size == 640


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, r"^model: got none"),
        ({"model": ""}, r"^model: got nothing"),
        (
            {"model": "no-such-model"},
            r"^model: got 'no-such-model', expected a path, or one of .*fai-mf-n-shapes",
        ),
        ({"model": 3}, r"^model: got int, expected a str"),
        ({"treshold": "0.5"}, r"^treshold: .* no such argument, expected some of model, .*threshold"),
        ({"threshold": "high"}, r"^threshold: got 'high', expected a number"),
        ({"threshold": "50"}, r"^threshold: got 50.0, expected at most 1"),
        ({"threshold": "nan"}, r"^threshold: got 'nan', expected a number"),
        ({"top_k": "0"}, r"^top_k: got 0, expected 1 or more"),
        ({"top_k": "2.5"}, r"^top_k: got '2.5', expected an integer"),
        ({"top_k": "9" * 5000}, r"^top_k: got '9{40}'\.\.\., expected an integer"),
        ({"top_k": True}, r"^top_k: got True, expected an integer"),
        ({"classes": [["disc"]]}, r"^classes: got list in it"),
        ({"im_size": "1x2x3"}, r"^im_size: got '1x2x3', expected 640"),
        ({"im_size": [1]}, r"^im_size: got 1 numbers"),
        ({"engine": "fast"}, r"^engine: got 'fast', expected one of auto, "),
        ({"num_cpus": "0"}, r"^num_cpus: got 0 without num_gpus"),
        ({"num_cpus": "-1"}, r"^num_cpus: got -1, expected 0 or more"),
        ({"num_replicas": "2", "max_replicas": "3"}, r"^num_replicas: got 2 beside min_replicas"),
        ({"min_replicas": "5", "max_replicas": "3"}, r"^max_replicas: got 3, expected min_replicas, 5"),
        ({"target_ongoing_requests": "0"}, r"^target_ongoing_requests: got 0"),
        ({"max_ongoing_requests": "2", "max_batch_size": "4"}, r"^max_ongoing_requests: got 2, expected"),
        ({"max_pixels": str(2**40)}, r"^max_pixels: got 1099511627776, expected 1\.\.268435456"),
        ({"timeout_s": "0"}, r"^timeout_s: got 0"),
    ],
)
def test_an_argument_that_is_wrong_is_named(arguments, said):
    given_model = {} if not arguments or "model" in arguments else {"model": "fai-mf-n-shapes"}
    with pytest.raises((TypeError, ValueError), match=said):
        app({**given_model, **arguments})


def test_serve_takes_it_for_a_builder():
    """It calls functions of one argument, which a class of pydantic's may not be the type of."""
    parameters = list(inspect.signature(app).parameters.values())
    assert inspect.isfunction(app)
    assert [parameter.annotation for parameter in parameters] == ["Mapping[str, Any]"]


def test_scaling():
    fixed = Settings.read({"model": "a", "num_replicas": "3"})
    assert (fixed.autoscaling, fixed.most) == (None, 3)
    assert fixed.inside == 3 * 4 + 64
    scaled = Settings.read({"model": "a", "min_replicas": "0", "max_replicas": "8"})
    assert scaled.autoscaling == {"min_replicas": 0, "max_replicas": 8, "target_ongoing_requests": 2.0}
    assert scaled.inside == 8 * 4 + 64
    automatic = Settings.read({"model": "a", "num_replicas": "auto", "target_ongoing_requests": 1.5})
    assert automatic.autoscaling == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 1.5}
    assert Settings.read({"model": "a", "min_replicas": 6}).most == 6


def test_batches_are_for_gpus_unless_they_are_asked_for():
    assert Settings.read({"model": "a"}).batch == 1
    on_gpu = Settings.read({"model": "a", "num_gpus": 1})
    assert (on_gpu.batch, on_gpu.ongoing) == (8, 16)
    assert Settings.read({"model": "a", "num_gpus": 1, "max_batch_size": 1}).batch == 1


def test_settings_tell_no_address():
    assert "secret" not in repr(Settings.read({"model": "a", "weights": "https://u:secret@h/a.pth"}))


# ------------------------------------------------------------------------------------------------ questions


def asked(query="", accept=None, of=None):
    pairs = [tuple(item.split("=", 1)) for item in query.split("&")] if query else []
    return (of or Query()).asked(pairs, accept)


def refused(call):
    with pytest.raises(Refusal) as caught:
        call()
    reply = caught.value.reply
    content = json.loads(reply.content)
    assert content["status"] == reply.status
    return reply.status, content["error"]


def status_of(call):
    """Of the error that it is refused with; None where it is not."""
    try:
        call()
    except Refusal as refusal:
        return refusal.reply.status
    return None


def test_a_request_changes_what_the_application_was_told():
    of = Query(threshold=0.5, top_k=3)
    assert asked(of=of) == of
    assert asked("threshold=0.25&classes=disc&classes=2,star&masks=none", of=of) == Query(
        0.25, ("disc", "2,star"), 3, "none"
    )


@pytest.mark.parametrize(
    ("accept", "query", "format"),
    [
        (None, "", "json"),
        ("*/*", "", "json"),
        ("image/png", "", "png"),
        ("image/*", "", "png"),
        ("image/png,*/*;q=0.8", "", "png"),
        ("application/json;q=0.5, image/png;q=0.4", "", "json"),
        ("text/html, image/avif, */*;q=0.1", "", "json"),
        ("application/json", "format=png", "png"),
        ("image/png", "format=json", "json"),
        ("text/html", "png=row", "png"),
    ],
)
def test_the_format_that_is_asked_for(accept, query, format):
    assert asked(query, accept).format == format


@pytest.mark.parametrize(
    ("query", "accept", "status", "said"),
    [
        ("treshold=1", None, 400, "'treshold': no such parameter, expected some of threshold"),
        ("threshold=1&threshold=1", None, 400, "threshold: got it twice"),
        ("threshold=2", None, 400, "threshold: got 2.0, expected at most 1"),
        ("top_k=-1", None, 400, "top_k: got -1, expected 1 or more"),
        ("top_k=٣", None, 400, "top_k: got '٣', expected an integer"),
        ("classes=", None, 400, "classes: got nothing"),
        ("masks=xml", None, 400, "masks: got 'xml', expected one of rle, polygons, png, none"),
        ("format=xml", None, 400, "format: got 'xml', expected one of json, png"),
        ("format=json&png=row", None, 400, "png: got 'row' with format=json"),
        ("", "text/html", 406, "Accept: got 'text/html', expected application/json or image/png"),
        ("", "application/json;q=0, image/png;q=zero", 406, "Accept: got"),
        ("&".join(["classes=disc"] * 70), None, 400, "'classes': no such parameter"),
    ],
)
def test_a_question_that_is_wrong_is_refused(query, accept, status, said):
    got, text = refused(lambda: asked(query, accept))
    assert got == status
    assert text.startswith(said)


@given(st.lists(st.tuples(st.text(), st.text())), st.none() | st.text())
def test_any_question_is_understood_or_refused(pairs, accept):
    assert status_of(lambda: Query().asked(pairs, accept)) in (None, 400, 406)


# ---------------------------------------------------------------------------------------------------- bodies


def read(body, headers=(), most=10_000, size=700):
    """What is read of a body that comes in pieces, and how many of its bytes were taken."""
    taken = 0

    async def chunks():
        nonlocal taken
        for start in range(0, len(body), size):
            taken += len(body[start : start + size])
            yield body[start : start + size]

    headers = {name.lower(): value for name, value in dict(headers).items()}
    return asyncio.run(read_picture(headers, chunks(), most)), taken


def form(*parts, boundary="sep", end=True):
    lines = b""
    for name, content in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'
        lines += head.encode() + content + b"\r\n"
    return lines + (f"--{boundary}--\r\n".encode() if end else b"")


FORM = {"Content-Type": "multipart/form-data; boundary=sep"}
PICTURE = bytes(range(256)) * 11 + b"\r\n--se\r\n\r\n--sep"


@pytest.mark.parametrize("kind", [None, "image/jpeg", "IMAGE/PNG; a=b", "application/octet-stream"])
def test_a_body_is_the_picture(kind):
    headers = {} if kind is None else {"Content-Type": kind}
    assert read(PICTURE, headers) == (PICTURE, len(PICTURE))


@pytest.mark.parametrize("size", [1, 3, 700, 100_000])
@pytest.mark.parametrize("name", ["file", "image"])
def test_a_form_has_the_picture(name, size):
    pytest.importorskip("python_multipart")
    # Its end looks like the boundary's beginning, and is none.
    content = PICTURE[:-5] + b"--seq"
    assert read(form((name, content)), FORM, size=size)[0] == content


def test_a_long_body_is_refused_before_it_is_read():
    assert refused(lambda: read(bytes(20_000), {"Content-Length": "20000"})) == (
        413,
        "body: got 20000 bytes, expected at most 10000",
    )
    # Nobody said how long it is, or lied.
    for headers in ({}, {"Content-Length": "3"}):
        taken = []

        async def chunks(taken=taken):
            for _ in range(1000):
                taken.append(1)
                yield bytes(1000)

        with pytest.raises(Refusal) as caught:
            asyncio.run(read_picture({name.lower(): headers[name] for name in headers}, chunks(), 10_000))
        assert caught.value.reply.status == 413
        assert len(taken) == 11


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({}, b"", 400, "body: got nothing"),
        ({"Content-Encoding": "gzip"}, b"x", 415, "Content-Encoding: got a compressed body"),
        ({"Content-Type": "text/html"}, b"x", 415, "Content-Type: got 'text/html', expected image/jpeg"),
        (
            {"Content-Type": "application/x-www-form-urlencoded"},
            b"x",
            415,
            "Content-Type: got 'application/x-www-form-urlencoded'",
        ),
        ({"Content-Length": "9" * 30}, b"x", 413, "body: got 9"),
    ],
)
def test_what_is_no_picture_is_refused(headers, body, status, said):
    got, text = refused(lambda: read(body, headers))
    assert got == status
    assert text.startswith(said)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("multipart/form-data", form(("file", b"x")), "without a boundary"),
        (f"multipart/form-data; boundary={'a' * 71}", form(("file", b"x")), "without a boundary"),
        (FORM["Content-Type"], form(("file", b"x"), end=False), "its end is missing"),
        (FORM["Content-Type"], b"", "its end is missing"),
        (FORM["Content-Type"], form(("file", b"")), "the picture of the form is empty"),
        (FORM["Content-Type"], form(("file", b"x"), ("image", b"y")), "more than one picture"),
        (FORM["Content-Type"], form(("file", b"x"), ("threshold", b"1")), "a part 'threshold'"),
        (FORM["Content-Type"], b"--sep\r\nX: y\r\n\r\nx\r\n--sep--\r\n", "a part ''"),
        (FORM["Content-Type"], b"--other\r\n" + form(("file", b"x")), "the form is damaged"),
        (FORM["Content-Type"], b"--sep\r\n" + b"X" * 9000 + b": y\r\n\r\n", "body: "),
        (FORM["Content-Type"], b"--sep\r\n" + b"X: y\r\n" * 3000, "body: "),
        (FORM["Content-Type"], bytes(range(256)), "the form is damaged"),
    ],
)
def test_a_form_that_is_wrong_is_refused(kind, body, said):
    pytest.importorskip("python_multipart")
    status, text = refused(lambda: read(body, {"Content-Type": kind}, most=100_000))
    assert status == 400
    assert said in text


@given(st.binary(max_size=300))
def test_any_form_is_read_or_refused(body):
    pytest.importorskip("python_multipart")
    for content in (body, b"--sep\r\n" + body, form(("file", body))):
        assert status_of(lambda content=content: read(content, FORM)) in (None, 400)


def test_errors_are_json():
    reply = error(503, "später", Retry_After="2")
    assert json.loads(reply.content) == {"status": 503, "error": "später"}
    assert (reply.status, reply.headers) == (503, {"Retry-After": "2"})


def test_too_many_pixels_are_an_error_of_their_own():
    from io import BytesIO

    from PIL import Image

    content = BytesIO()
    Image.new("L", (40, 30)).save(content, "PNG")
    assert read_image(content.getvalue(), max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(TooLargeError, match="is too large: 40 x 30"):
        read_image(content.getvalue(), max_pixels=1199)
