"""Secrets of addresses: none of them in what is printed, logged, raised, written or put in a repr()."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import pickle
import traceback
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import av
import fai_fast
import pytest
from fai_fast import cli, download
from fai_fast._redaction import redacted, scrubbed, scrubbed_error
from fai_fast.errors import WeightsError
from fai_fast.images import read_image
from fai_fast.registry import load_spec
from fai_fast.stream import Stream
from fai_fast.weights import load_weights
from helpers.videos import Fake
from hypothesis import given
from hypothesis import strategies as st

# None of them may be in any message, nor may any part of four letters.
PASSWORDS = (
    "hunter22",
    "hun@ter22",
    "hunter22@",
    "@hunter22",
    "hu@nt@er22",
    "hun/ter22",
    "hun/te@r22",
    "hun?ter22",
    "hun#ter22",
    "hun:ter22",
    "hun&ter=22",
    "hun ter22",
    "hun'ter22",
    'hun"ter22',
    "hun\\ter22",
    "hun|ter22",
    "hun%40ter22",
    "hünter22",
)
HOSTS = ("127.0.0.1:1", "[::1]:1", "camera-7.local", "[fe80::1%25eth0]:554")
SCHEMES = ("rtsp", "rtsps", "http", "https", "srt", "rtmp", "RTSP")
PIECES = ("hunt", "ter2", "er22", "ünte", "un@t", "SECRET", "t0ken")


def tells(text):
    """The pieces of secrets that are in a text."""
    return [piece for piece in PIECES if piece in text]


def addresses():
    for scheme in SCHEMES:
        for host in HOSTS:
            yield f"{scheme}://{host}/live?token=SECRETt0ken"
            yield f"{scheme}://{host}/live#SECRETt0ken"
    for password in PASSWORDS:
        for scheme in SCHEMES[:3]:
            for host in HOSTS:
                yield f"{scheme}://admin:{password}@{host}/live"
        yield f"rtsp://admin:{quote(password, safe='')}@camera/live"
        yield f"rtsp://admin:{password}@camera/live?token=SECRETt0ken#SECRETt0ken"
        yield f"rtsp://{password}@camera/live"
        yield f"rtsp://admin%3A{password}%40camera/live"
        yield f"concat:http://admin:{password}@camera/a|http://admin:{password}@camera/b"
        yield f"admin:{password}@camera/live"
        yield f"rtsp:/admin:{password}@camera/live"
        yield f"//admin:{password}@camera/live"
        yield f"rtsp://admin:{password}\uff20camera/live"
    yield "rtsp://camera/user=admin_password=hunter22_channel=1.sdp?real_stream"
    yield "rtsp://camera/live;token=SECRETt0ken"
    yield "srt://camera:9000?mode=caller&passphrase=SECRETt0ken&streamid=SECRET"
    yield "rtmp://camera/app/cam pubUser=admin pubPasswd=hunter22 token=SECRETt0ken"
    yield "https://bucket/a.pth%3Ftoken=SECRETt0ken"
    yield "https:/bucket/a.pth?token=SECRETt0ken"


ADDRESSES = tuple(dict.fromkeys(addresses()))


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_form_of_an_address_tells_its_secrets(address):
    shown = redacted(address)
    assert tells(shown) == []
    assert tells(redacted(shown)) == []
    for text in (
        f"could not open {address}",
        f"[Errno 5] Input/output error: {address!r}",
        f"<{quote(address, safe='')}>: no",
    ):
        assert tells(scrubbed(text, address)) == []


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:P@ss@camera:554/live", "rtsp://camera:554/live"),
        ("rtsp://admin:pass@[fe80::1]:554/live", "rtsp://[fe80::1]:554/live"),
        ("rtsp://camera/live", "rtsp://camera/live"),
        ("https://host/a/b.pth?download=true", "https://host/a/b.pth"),
        ("srt://camera:9000?passphrase=x", "srt://camera:9000"),
        ("file:///data/a.mp4", "file:///data/a.mp4"),
        ("/data/a@b.mp4", "/data/a@b.mp4"),
        ("C:/data/a@b.mp4", "C:/data/a@b.mp4"),
        ("2026-10-03T12:30:00.mp4", "2026-10-03T12:30:00.mp4"),
        ("photos/a?/*.png", "photos/a?/*.png"),
        ("a b/c#d.mp4", "a b/c#d.mp4"),
        ("data//a.mp4", "data//a.mp4"),
        ("", ""),
    ],
)
def test_what_tells_one_camera_or_file_from_another_stays(address, shown):
    assert redacted(address) == shown


@given(
    st.text(st.characters(blacklist_categories=("Cs",)), min_size=6, max_size=20),
    st.sampled_from(["rtsp", "http", "srt"]),
)
def test_no_password_is_in_its_address(password, scheme):
    address = f"{scheme}://Q:{password}@h/l"
    shown = redacted(address)
    assert shown in (f"{scheme}://h/l", f"{scheme}://***@h/l", f"{scheme}://***")


@given(st.text(max_size=200))
def test_any_text_can_be_scrubbed(text):
    assert redacted(redacted(text)) == redacted(redacted(redacted(text)))
    scrubbed(text, text)


def test_a_text_without_addresses_stays():
    text = "weights: /a b/c.pth is damaged (3 of 4): key 'a@b' is missing, expected 1.5"
    assert scrubbed(text) == text
    assert scrubbed("no answer from http://host/a/b.pth: refused") == (
        "no answer from http://host/a/b.pth: refused"
    )


def test_parts_of_an_address_are_hidden_in_other_peoples_words():
    address = "http://admin:hunter22@camera:80/live?token=SECRETt0ken&n=1"
    text = "login admin:hunter22 failed; password 'hunter22'; GET /live?token=SECRETt0ken&n=1"
    assert scrubbed(text, address) == "login *** failed; password '***'; GET /live?***"


def test_long_texts_take_no_time_to_speak_of():
    scrubbed("a" * 300_000)
    scrubbed("rtsp://" * 20_000)
    redacted("@" * 100_000)


def failed(address):
    """FFmpeg's and urllib's own errors of an address, with what led to them."""
    with pytest.raises(av.FFmpegError) as caught:
        av.open(address, timeout=0.2)
    yield caught.value
    yield urllib.error.HTTPError(address, 403, f"Forbidden: {address}", None, io.BytesIO())
    yield urllib.error.URLError(OSError(5, "Input/output error", address))
    try:
        try:
            raise ValueError(f"unknown url type: {address!r}")
        except ValueError as error:
            raise RuntimeError(address.encode(), ("opening", [address])) from error
    except RuntimeError as error:
        yield error


@pytest.mark.parametrize("password", PASSWORDS)
def test_errors_of_libraries_are_scrubbed_with_all_that_led_to_them(password):
    address = f"nothing://admin:{password}@127.0.0.1:1/live?token=SECRETt0ken"
    for error in failed(address):
        assert tells(str(error)) != [] or tells(repr(error)) != []
        assert scrubbed_error(error, address) is error
        text = "".join(traceback.format_exception(type(error), error, None)) + repr(error) + repr(vars(error))
        assert tells(text) == []
        if isinstance(error, urllib.error.HTTPError):
            assert tells(f"{error.filename} {error.url} {error.msg}") == []
            error.close()


# ------------------------------------------------------------------------------------------------- the places


def everything(error):
    """Whatever of an error a log, a traceback or a collector shows."""
    return (
        "".join(traceback.format_exception(type(error), error, None)) + repr(error) + repr(error.__context__)
    )


@pytest.fixture
def fake():
    model = Fake()
    yield model
    model.close()


@pytest.mark.parametrize("query", ["", "?token=SECRETt0ken"])
@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["rtsp", "http", "srt", "rtmp"])
def test_streams(fake, caplog, scheme, password, query):
    caplog.set_level(logging.DEBUG)
    address = f"{scheme}://admin:{password}@127.0.0.1:1/live{query}"
    with Stream(fake, address, timeout=1, on_error="reconnect", retries=1, backoff=(0.001, 0.001)) as stream:
        with pytest.raises((OSError, ValueError)) as caught:
            next(stream)
        assert tells(repr(stream) + everything(caught.value) + caplog.text) == []


@pytest.mark.parametrize("text", ["admin:hunter22@camera/live", "rtsp:/admin:hunter22@camera/live"])
def test_streams_of_addresses_without_a_scheme(fake, text):
    with pytest.raises(FileNotFoundError, match="no such file") as caught:
        Stream(fake, text)
    assert tells(everything(caught.value)) == []


def test_a_source_of_the_users_that_fails_is_logged_without_secrets(fake, caplog):
    caplog.set_level(logging.DEBUG)

    def camera():
        raise OSError("rtsp://admin:hunter22@camera/live?token=SECRETt0ken: no answer")
        yield

    with (
        Stream(fake, camera, on_error="reconnect", retries=1, backoff=(0.001, 0.001)) as stream,
        pytest.raises(OSError, match="no answer"),
    ):
        next(stream)
    assert "no answer" in caplog.text
    assert tells(caplog.text) == []


@pytest.mark.parametrize(
    "weights",
    [
        "http://127.0.0.1:1/hunter.pth?token=SECRETt0ken#SECRETt0ken",
        "http://127.0.0.1:1/a.pth?sig=%53ECRETt0ken",
        *(f"https://admin:{password}@127.0.0.1:1/a.pth" for password in PASSWORDS),
        "ftp://admin:hunter22@host/a.pth",
        "admin:hunter22@host/a.pth",
    ],
)
def test_weights(weights, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(download, "DEFAULT", download.Transfer(timeout=0.3, retries=1, backoff=0.001))
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises((WeightsError, ValueError)) as caught:
        load_weights("fai-mf-n-shapes", weights, cache_dir=tmp_path)
    said = everything(caught.value) + caplog.text + " ".join(map(str, tmp_path.rglob("*")))
    assert tells(said.replace("hunter.pth", "")) == []


def test_pictures_and_models():
    for text in ("http://admin:hunter22@host/a.png?token=SECRETt0ken", "admin:hunter22@host/a.png"):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_image(text)
        assert tells(everything(caught.value)) == []
        for kind in ("", ".onnx"):
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                fai_fast.load(text + kind)
            assert tells(everything(caught.value)) == []


def test_records_of_models(tmp_path):
    url = "https://host/a.pth?token=SECRETt0ken#SECRETt0ken"
    spec = dataclasses.replace(fai_fast.spec("fai-mf-n-shapes"), bundled_weights=None, weights_url=url)
    assert tells(repr(spec) + spec.card() + json.dumps(spec.to_dict())) == []
    assert spec.to_dict()["weights_url"] == "https://host/a.pth"
    # What is used, and not shown, is whole.
    assert spec.weights_url == pickle.loads(pickle.dumps(spec)).weights_url == url
    with pytest.raises(ValueError, match=r"weights_url: got 'https://host/a'") as caught:
        dataclasses.replace(spec, weights_url="https://admin:hunter22@host/a")
    assert tells(everything(caught.value)) == []
    load_spec(spec.to_dict())


@pytest.mark.parametrize("password", ["hunter22", "hun@ter22", "hun/ter22", "hun ter22", "hun'ter22"])
@pytest.mark.parametrize(
    "argv",
    [
        ["stream", "{}"],
        ["stream", "{}", "--traceback"],
        ["predict", "fai-mf-n-shapes", "{}"],
        ["predict", "{}", "{}"],
        ["bench", "{}"],
        ["bench", "fai-mf-n-shapes", "--weights", "{}"],
        ["bench", "fai-mf-n-shapes", "--weights={}", "--traceback"],
        ["demo", "--image", "{}"],
        ["export", "{}", "a.onnx"],
        ["models", "{}"],
        ["eval", "{}", "--ade", "."],
        ["eval", "fai-mf-n-shapes", "--coco", "{}", "--images", "{}"],
        ["models", "--no-such-option={}"],
    ],
    ids=" ".join,
)
def test_the_command_line(argv, password, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "DEFAULT", download.Transfer(timeout=0.3, retries=1, backoff=0.001))
    address = f"http://admin:{password}@127.0.0.1:1/live?token=SECRETt0ken"
    assert cli.main([item.format(address) for item in argv]) in (1, 2)
    out, err = capfd.readouterr()
    assert tells(out + err) == []
    assert "fai-fast: error: " in err


@pytest.mark.parametrize(
    "address",
    [
        "http://h/a.pth;jsessionid=SECRET",
        "http://h/token=SECRET/a.pth",
        "http://h/a.pth?token=SECRET",
        "http://h/a.pth#SECRET",
        "http://u:SECRET@h/a.pth",
    ],
)
def test_files_in_the_cache_do_not_hold_secrets_in_their_names(address):
    path = download.cached_path(address, Path("/cache"))
    assert "SECRET" not in str(path)
    assert path != download.cached_path(address.replace("SECRET", "OTHER"), Path("/cache"))
