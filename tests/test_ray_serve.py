"""fai_fast.ray.serve on Ray Serve: answers as of infer, bad input, too much of it, and replicas that die."""

from __future__ import annotations

import asyncio
import io
import math
import os
import signal
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, samples
from fai_fast.images import read_image
from helpers.serving import Client, answer_of, replicas_of, require_serve, serving
from PIL import Image

require_serve()

# Ray's own: files and sockets that it leaves to the garbage collector, and what it will change one day.
pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = {"model": "fai-mf-n-shapes", "precision": "fp32"}
LIMIT = 300_000  # bytes of a body


@pytest.fixture(scope="module")
def picture():
    with open(samples.path("shapes.jpg"), "rb") as file:
        return file.read()


@pytest.fixture(scope="module")
def model():
    # What the replicas find in the cache, with their number of threads.
    with fai_fast.load(MODEL["model"], precision="fp32", num_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def served(model):
    with serving() as served:
        from ray.serve.api import RunTarget, run_many

        plain = {
            **MODEL, "num_replicas": "2", "num_cpus": "0.5", "max_body_bytes": str(LIMIT), "max_pixels": "2000000"
        }  # fmt: skip
        # Room for three requests: two that are worked on, and one that waits.
        batches = {
            **MODEL, "num_cpus": 0.5, "max_batch_size": 2, "max_ongoing_requests": 2, "max_queued_requests": 1,
            "batch_wait_ms": 500, "retry_after_s": 3, "threshold": 0.3,
        }  # fmt: skip
        app = fai_fast.ray.serve.app
        run_many([RunTarget(app(plain), "plain", "/"), RunTarget(app(batches), "batches", "/of/batches")])
        yield served


@pytest.fixture(scope="module")
def client(served):
    return Client(served.port)


@pytest.fixture(scope="module")
def batches(served):
    return Client(served.port, "/of/batches")


def without_latency(answer):
    assert answer.status == 200, answer
    content = answer.json
    latency = content.pop("latency_ms")
    assert set(latency) == {"decode", "preprocess", "engine", "postprocess", "total"}
    assert latency["engine"] > 0
    return content


def message(answer, status):
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["status"] == status
    return answer.json["error"]


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


# ------------------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize("path", ["/", "/predict"])
def test_json_is_what_infer_finds(client, model, picture, path):
    found = model.infer(picture)
    assert len(found) > 3
    answer = client.post(picture, path)
    assert without_latency(answer) == found.to_dict()
    assert Detections.from_json(answer.content) == found
    assert answer.headers["cache-control"] == "no-store"


def test_options_are_those_of_infer(client, model, picture):
    options = {"threshold": 0.2, "classes": ["disc", 3], "top_k": 2}
    found = model.infer(picture, **options)
    assert len(found) == 2
    for query in ("classes=disc,3", "classes=disc&classes=3"):
        answer = client.post(picture, f"/?threshold=0.2&{query}&top_k=2")
        assert without_latency(answer) == found.to_dict()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_and_forms(client, model, picture, kind):
    content = encoded(read_image(picture)[:200, :300], kind)
    found = model.infer(content).to_dict()
    assert without_latency(client.post(content, Content_Type="application/octet-stream")) == found
    form = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + content + b"\r\n--b--\r\n"
    answer = client.post([form[:50], form[50:]], Content_Type="multipart/form-data; boundary=b")
    assert without_latency(answer) == found


def test_masks_in_other_forms(client, model, picture):
    found = model.infer(picture)
    rows = found.to_dict()["detections"]

    def masks(kind):
        content = without_latency(client.post(picture, f"/?masks={kind}"))
        got = [row.pop("mask") for row in content["detections"]]
        assert content["detections"] == [{name: row[name] for name in row if name != "mask"} for row in rows]
        return got

    assert masks("rle") == [row["mask"] for row in rows]
    assert masks("none") == [None] * len(found)
    for i, mask in enumerate(masks("png")):
        x1, y1, x2, y2 = mask["box"]
        import base64

        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["png"]))))
        whole = np.zeros(found.size, bool)
        whole[y1:y2, x1:x2] = pixels
        assert np.array_equal(whole, found.mask[i])
    pytest.importorskip("cv2")
    assert masks("polygons") == [[line.tolist() for line in lines] for lines in found.to_polygons()]


def test_pngs(client, model, picture):
    found = model.infer(picture)
    for answer in (client.post(picture, "/?format=png"), client.post(picture, Accept="image/png")):
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        shown = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert np.array_equal(shown, fai_fast.render.draw(read_image(picture), found))
    for values in ("class", "row"):
        assert client.post(picture, f"/?png={values}").content == found.to_label_png(values=values)


def test_many_at_once_are_each_answered_for_themselves(client, model, picture):
    """More than are worked on, of different pictures and with different options."""
    pixels = read_image(picture)
    contents = [
        encoded(np.ascontiguousarray(np.roll(pixels, 40 * i, 1)[:, : 500 + 20 * i]), "JPEG") for i in range(6)
    ]
    expected = [
        model.infer(content, threshold=0.3 + 0.05 * i).to_dict() for i, content in enumerate(contents)
    ]
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda i: client.post(contents[i % 6], f"/?threshold={0.3 + 0.05 * (i % 6)}"), range(36))
        )
    assert [without_latency(answer) for answer in answers] == expected * 6


def test_batches_are_those_of_infer_batch(served, batches, picture):
    pixels = read_image(picture)
    contents = [picture, encoded(np.ascontiguousarray(pixels[:, ::-1]))]
    with fai_fast.load(MODEL["model"], precision="fp32", num_threads=1, batch_size=2) as model:
        # The application's own threshold, and another: those do not run together.
        low = [model.infer_batch([content], threshold=0.3)[0].to_dict() for content in contents]
        high = [model.infer_batch([content], threshold=0.8)[0].to_dict() for content in contents]
    assert low[0] != high[0]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            answers = pool.map(lambda i: batches.post(contents[i]), range(2))
            assert [without_latency(answer) for answer in answers] == low
            answers = pool.map(lambda i: batches.post(contents[i], f"/?threshold={(0.3, 0.8)[i]}"), range(2))
            assert [without_latency(answer) for answer in answers] == [low[0], high[1]]
    assert message(batches.post(contents[0], "/?classes=dog"), 400).startswith("classes: got 'dog'")
    # Two at once, four times; had each gone for itself, there would be eight batches and the one of the error.
    sizes = metrics_of(served, "ray_serve_actual_batch_size_count", lambda found: sum(found.values()) >= 5)
    assert sum(sizes.values()) < 9


def test_info_tells_what_is_no_secret(client, batches, model):
    info = client.get("/info").json
    assert info["classes"] == list(model.spec.classes)
    assert (info["name"], info["im_size"], info["precision"]) == ("fai-mf-n-shapes", [192, 192], "fp32")
    assert info["defaults"] == {"threshold": model.spec.config.threshold, "classes": None, "top_k": None}
    assert info["limits"]["max_body_bytes"] == LIMIT
    assert batches.get("/info").json["batch_size"] == 2
    assert batches.get("/info").json["defaults"]["threshold"] == 0.3
    for secret in (os.environ["FAI_FAST_CACHE"], "/", "Xeon", "EPYC"):
        assert secret not in client.get("/info").content.decode()


def test_health(client, batches):
    for each in (client, batches):
        assert each.get("/healthz").json == {"status": "ok"}
        assert each.ask("HEAD", "/healthz").status == 200


# ------------------------------------------------------------------------------------------------ what is refused


def bomb(side):
    """A PNG of a few bytes that says it has `side` squared pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def test_what_is_wrong_is_said(client, picture):
    assert "damaged" in message(client.post(picture[:3000]), 400)
    assert "no picture that Pillow can read" in message(client.post(b"MZ" + bytes(1000)), 400)
    assert "PostScript" in message(
        client.post(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), 400
    )
    assert "expected a picture" in message(client.post(b""), 400)
    assert "damaged" in message(client.post(bomb(50)), 400)
    for side in (1500, 60_000):
        assert (
            message(client.post(bomb(side)), 413) == "image: it has too many pixels, expected at most 2000000"
        )
    assert "expected image/jpeg" in message(client.post(picture, Content_Type="text/plain"), 415)
    assert "compressed" in message(client.post(picture, Content_Encoding="gzip"), 415)
    assert "threshold: got 'x'" in message(client.post(picture, "/?threshold=x"), 400)
    assert "such as 'disc'" in message(client.post(picture, "/?classes=dog"), 400)
    assert "boundary" in message(client.post(picture, Content_Type="multipart/form-data"), 400)
    assert "expected application/json or image/png" in message(client.post(picture, Accept="text/html"), 406)
    assert "expected one of /, /predict" in message(client.get("/nothing"), 404)
    assert "expected one of /, /predict" in message(client.post(picture, "/predict/more"), 404)
    answer = client.get("/predict")
    assert (message(answer, 405), answer.headers["allow"]) == ("/predict: got GET, expected POST", "POST")


def test_bodies_that_are_too_long(client):
    assert (
        message(client.post(bytes(LIMIT + 1)), 413)
        == f"body: got {LIMIT + 1} bytes, expected at most {LIMIT}"
    )
    assert "more than" in message(client.post([bytes(50_000)] * 20), 413)
    # What is said is believed, before any of it comes.
    connection = client.connection()
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", str(10**12))
    connection.putheader("Content-Type", "image/jpeg")
    connection.endheaders()
    assert answer_of(connection).status == 413
    connection.close()


def test_a_client_that_goes_away_leaves_nothing_behind(client, picture):
    for _ in range(3):
        connection = client.connection()
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(len(picture)))
        connection.putheader("Content-Type", "image/jpeg")
        connection.endheaders(picture[:1000])
        connection.close()
    assert client.post(picture).status == 200


def test_too_many_requests_are_told_when_to_come_again(batches, picture):
    waiting = []
    try:
        for _ in range(3):
            connection = batches.connection()
            connection.putrequest("POST", batches.prefix + "/")
            connection.putheader("Content-Length", str(len(picture)))
            connection.putheader("Content-Type", "image/jpeg")
            connection.endheaders(picture[:1000])
            waiting.append(connection)
        # They are inside when there is no more room.
        limit = time.monotonic() + 30
        while (answer := batches.post(picture)).status == 200 and time.monotonic() < limit:
            pass
        assert "try again" in message(answer, 503)
        assert answer.headers["retry-after"] == "3"
        assert batches.get("/healthz").status == 200
        assert batches.get("/info").status == 200
        for connection in waiting:
            connection.send(picture[1000:])
        assert [answer_of(connection).status for connection in waiting] == [200, 200, 200]
        assert batches.post(picture).status == 200
    finally:
        for connection in waiting:
            connection.close()


# ---------------------------------------------------------------------------------------------------- metrics


def metrics_of(served, name, enough):
    """Values by labels of a metric that Prometheus would read, once they are enough."""
    import re

    limit = time.monotonic() + 30
    while True:
        text = Client(served.metrics).get("/metrics").content.decode()
        found = {
            tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels))): float(value)
            for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE)
        }
        if enough(found):
            return found
        assert time.monotonic() < limit, f"{name}: {found}"
        time.sleep(0.3)


def by(found, label):
    return {dict(labels).get(label) for labels in found}


def test_prometheus_reads_what_happened(served, client, picture):
    client.post(picture)
    client.post(b"x")
    counts = metrics_of(
        served, "ray_fai_fast_requests_total", lambda found: {"200", "400", "413"} <= by(found, "status")
    )
    assert {"plain", "batches"} == by(counts, "application")
    stages = {"decode", "preprocess", "engine", "postprocess", "total", "write", "request"}
    metrics_of(served, "ray_fai_fast_latency_ms_count", lambda found: by(found, "stage") == stages)
    buckets = metrics_of(served, "ray_fai_fast_latency_ms_bucket", bool)
    assert {"1.0", "1000.0", "+Inf"} <= by(buckets, "le")
    for name in ("requests", "pictures"):
        metrics_of(
            served,
            f"ray_fai_fast_{name}_in_progress",
            lambda found: found and not any(found.values()),
        )


# ------------------------------------------------------------------------------------------- what goes wrong


class Calls:
    """In place of a handle: each call of its method does the next of some things."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.predict = self.ready = self

    def remote(self, *_):
        outcome = self.outcomes.pop(0)

        async def answer():
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return asyncio.ensure_future(answer() if outcome is not None else asyncio.sleep(60))


def answered(calls, body=b"x", after=None, **settings):
    """What an ingress makes of a request when its replicas do that, and have given an answer before it."""
    from fai_fast.ray.serve.ingress import Ingress
    from fai_fast.ray.serve.query import Query
    from fai_fast.ray.serve.settings import Settings
    from starlette.requests import Request

    if after is not None:
        calls.outcomes.insert(0, after)

    async def receive():
        if body is None:
            await asyncio.sleep(60)
        if isinstance(body, Exception):
            raise body
        return {"type": "http.request", "body": body, "more_body": False}

    async def run():
        ingress = Ingress(calls, Settings.read({"model": "fai-mf-n-shapes", **settings}))
        if after is not None:
            await ingress._predicted(b"x", Query(), math.inf)
        path = "/" if body != b"health" else "/healthz"
        method = "POST" if path == "/" else "GET"
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
        response = await ingress(Request(scope, receive))
        return response.status_code, response.body.decode(), response.headers.get("retry-after")

    return asyncio.run(run())


def test_a_picture_goes_on_to_the_next_replica(served):
    from fai_fast.ray.serve.http import Reply
    from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError

    fine = Reply(200, b"{}")
    died = [ActorDiedError(), ActorUnavailableError("", None)]
    assert answered(Calls(*died, fine)) == (200, "{}", None)
    # One that kills whoever looks at it does not get all of them.
    calls = Calls(*died, ObjectLostError("0" * 56, None, ""), fine)
    status, text, retry = answered(calls, retry_after_s=7)
    assert (status, retry) == (503, "7")
    assert "3 replicas died" in text
    assert calls.outcomes == [fine]


def test_what_replicas_cannot_do(served, monkeypatch):
    from fai_fast.ray.serve import ingress
    from fai_fast.ray.serve.http import Reply
    from ray.exceptions import ActorDiedError, TaskCancelledError
    from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

    assert answered(Calls(BackPressureError(64, 64)))[::2] == (503, "1")
    assert answered(Calls(RayServeException("where it is is nobody's affair")))[::2] == (503, "1")
    status, text, _ = answered(Calls(RuntimeError("of /root/secret")))
    assert status == 500
    assert "secret" not in text
    assert answered(Calls(None), timeout_s=0.1)[0] == 504
    assert answered(Calls(), body=None, timeout_s=0.1)[0] == 408
    # Who went away is no failure of the ingress, which metrics would show as one.
    assert answered(Calls(), body=TaskCancelledError())[0] == 499
    assert answered(Calls(RequestCancelledError()))[0] == 499
    assert answered(Calls(True), body=b"health")[:2] == (200, '{"status": "ok"}')
    assert answered(Calls(ActorDiedError()), body=b"health")[0] == 503
    # Who has just answered is there, though the question would wait behind pictures.
    assert answered(Calls(None), body=b"health", after=Reply(200, b"{}"))[:2] == (200, '{"status": "ok"}')
    monkeypatch.setattr(ingress, "_HEALTH_S", 0.1)
    assert answered(Calls(None), body=b"health", after=Reply(500, b"{}"))[0] == 503
    assert answered(Calls(BackPressureError(64, 64)), body=b"health")[0] == 503


def test_an_engine_that_fails_is_not_healthy(served, picture, monkeypatch):
    from fai_fast.ray.serve.query import Query
    from fai_fast.ray.serve.replica import Replica
    from fai_fast.ray.serve.settings import Settings

    replica = Replica(Settings.read(MODEL))

    async def fails(error):
        def broken(*_, **__):
            raise error

        await replica.check_health()
        assert (await replica.predict(picture, Query())).status == 200
        with monkeypatch.context() as patch:
            patch.setattr(replica._model, "infer", broken)
            await replica.check_health()  # nobody knows yet
            reply = await replica.predict(picture, Query())
            assert reply.status == 500
            assert b"secret" not in reply.content
            with pytest.raises(fai_fast.EngineError):
                await replica.check_health()
        await replica.check_health()
        assert (await replica.predict(picture, Query())).status == 200
        await replica.check_health()

    asyncio.run(fails(fai_fast.EngineError("in /root/secret")))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_replicas": "auto", "num_gpus": "0.5", "num_cpus": "0"},
        {"min_replicas": "0", "max_replicas": "8", "target_ongoing_requests": "1.5", "ingress_replicas": "3"},
        {"max_ongoing_requests": "1", "max_queued_requests": "1"},
    ],
)
def test_settings_are_ones_that_serve_takes(arguments):
    from ray.serve import Application

    assert isinstance(fai_fast.ray.serve.app({**MODEL, **arguments}), Application)


def test_a_default_that_the_model_does_not_know_fails_at_the_start():
    from fai_fast.ray.serve.replica import Replica
    from fai_fast.ray.serve.settings import Settings

    with pytest.raises(ValueError, match="classes: got 'dog'"):
        Replica(Settings.read({**MODEL, "classes": "disc,dog"}))


def test_nothing_is_lost_when_a_replica_is_killed(served, client, model, picture):
    """Every request has exactly one answer: what was found, or that there is nobody now, which may be asked again."""
    import ray

    expected = model.infer(picture).to_dict()
    before = replicas_of("Model")
    plain = {name: actor for name, actor in before.items() if "::plain#" in name}
    assert len(plain) == 2
    victim = ray.get(next(iter(plain.values())).__ray_call__.remote(lambda _: os.getpid()))
    each, clients = 15, 4
    answers = [[] for _ in range(clients)]
    # When all are under way, and before the last ones are asked.
    halfway = threading.Barrier(clients + 1)

    def asks(number):
        for i in range(each):
            if i == 4:
                halfway.wait(60)
            answers[number].append(client.post(picture))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(asks, number) for number in range(clients)]
        halfway.wait(60)
        os.kill(victim, signal.SIGKILL)
        for each_running in running:
            each_running.result(120)
    flat = [answer for of_client in answers for answer in of_client]
    assert len(flat) == each * clients
    fine = [answer for answer in flat if answer.status == 200]
    assert all(without_latency(answer) == expected for answer in fine)
    for answer in flat:
        if answer.status != 200:
            assert "try again" in message(answer, 503)
            assert answer.headers["retry-after"] == "1"
    # The one that is left has most of them.
    assert len(fine) > each * clients // 2
    limit = time.monotonic() + 60
    while len([name for name in replicas_of("Model") if "::plain#" in name and name not in before]) < 1:
        assert time.monotonic() < limit
        time.sleep(0.2)
    with ThreadPoolExecutor(clients) as pool:
        after = list(pool.map(lambda _: client.post(picture), range(16)))
    assert [without_latency(answer) for answer in after] == [expected] * 16
