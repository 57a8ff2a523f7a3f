"""Requests a second and their times with Ray Serve on this machine, against one process that calls the model itself.

``python -m bench.ray_serve [--quick] [--json FILE]`` takes about a minute and a half. Replicas have one thread each and
there are as many as cores, at most 4; clients are threads here, each with a connection that is kept, and so are part of
the load, as are Serve's proxy and the ingress. The single process gets the same encoded pictures without HTTP: a loop
with all cores in one frame, the fastest for one caller, and as many callers as there are replicas with one thread each.
Then a replica is killed while clients ask: every request must have one answer, what `infer` finds, or a 503.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import fai_fast
import numpy as np
from fai_fast._scenes import draw
from PIL import Image

from bench import report

ROOT = Path(__file__).resolve().parents[1]
MODEL, PRECISION = "fai-mf-n-shapes", "fp32"
SIZE = (480, 640)
STORE = 80 << 20
REPLICAS = min(4, os.cpu_count() or 1)
# How Ray calls its processes.
_KINDS = {"ray::ProxyActor": "proxy", ":Ingress": "ingress", ":Model": "replicas"}


def pictures(count: int = 10) -> list[bytes]:
    """JPEGs with drawn shapes, all different."""
    contents = []
    for seed in range(count):
        content = io.BytesIO()
        Image.fromarray(draw(seed, SIZE)).save(content, "JPEG", quality=90)
        contents.append(content.getvalue())
    return contents


def load(callers: int, seconds: float, ask: Callable[[int], Callable[[int], Any]]) -> dict[str, Any]:
    """What so many callers get done, each with what `ask` makes for it, after a second that does not count.

    The processors' time a picture, by the kind of process, does not hang on what else the machine does.
    """
    times: list[list[float]] = [[] for _ in range(callers)]
    done = [0] * callers
    before = cpu_seconds()
    ends = time.perf_counter() + 1 + seconds

    def run(caller: int) -> None:
        each = ask(caller)
        number = caller
        while (began := time.perf_counter()) < ends:
            each(number)
            number += 1
            done[caller] += 1
            if began > ends - seconds:
                times[caller].append(time.perf_counter() - began)

    together(callers, run)
    spent = cpu_seconds()
    spent.subtract(before)
    flat = np.array([item for mine in times for item in mine])
    p50, p99 = np.quantile(flat, (0.5, 0.99)).tolist()
    return {
        "callers": callers,
        "pictures": len(flat),
        "per_second": len(flat) / seconds,
        "p50_s": p50,
        "p99_s": p99,
        "cpu_s": {kind: value / sum(done) for kind, value in spent.items() if value > 0},
    }


def cpu_seconds() -> Counter[str]:
    """What the processors have worked for this process, and for those that it started, by their kind."""
    tick = os.sysconf("SC_CLK_TCK")
    parents, times, kinds = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            _, _, rest = (folder / "stat").read_text().rpartition(")")
            fields = rest.split()
            pid = int(folder.name)
            parents[pid] = int(fields[1])
            times[pid] = (int(fields[11]) + int(fields[12])) / tick
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
            kinds[pid] = next((kind for part, kind in _KINDS.items() if part in title), "rest of Ray")
    kinds[os.getpid()] = "callers"
    found: Counter[str] = Counter()
    for pid in times:
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            found[kinds[pid]] += times[pid]
    return found


def together(callers: int, run: Callable[[int], None]) -> None:
    """Runs it in threads; the first error of one is raised."""
    errors: list[BaseException] = []

    def guarded(caller: int) -> None:
        try:
            run(caller)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Client:
    """A connection that is kept, and opened again where the other side closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def post(self, content: bytes) -> tuple[int, bytes]:
        """Status and body of the one answer; an error where there is none."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=90)
        self._connection.request("POST", "/", content, {"Content-Type": "image/jpeg"})
        response = self._connection.getresponse()
        return response.status, response.read()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(folder: str) -> int:
    """Starts Ray, with its files in a folder, and Serve with the application; the port."""
    os.environ["PYTHONPATH"] = str(Path(fai_fast.__file__).parents[1])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    port = free_port()
    ray.init(
        address="local",
        num_cpus=REPLICAS,
        num_gpus=0,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=folder,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(
        fai_fast.ray.serve.app(
            {"model": MODEL, "precision": PRECISION, "num_replicas": REPLICAS, "num_cpus": 1}
        )
    )
    return port


def replica() -> int:
    """The process of one replica of the model."""
    import ray

    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["name"].startswith("SERVE_REPLICA::") and "#Model#" in each["name"]:
            actor = ray.get_actor(each["name"], namespace="serve")
            return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))
    raise RuntimeError("there is no replica")


def overhead(port: int, contents: Sequence[bytes], seconds: float) -> float:
    """Seconds that a request takes longer than the model in this process, in turns: the median of their differences."""
    client = Client(port)
    differences = []
    ends = time.perf_counter() + seconds
    with fai_fast.load(MODEL, precision=PRECISION, num_threads=1) as model:
        while (began := time.perf_counter()) < ends:
            content = contents[len(differences) % len(contents)]
            model.infer(content)
            between = time.perf_counter()
            client.post(content)
            differences.append(time.perf_counter() - between - (between - began))
    return float(np.median(differences))


def killed(port: int, contents: Sequence[bytes], expected: Sequence[Any], seconds: float) -> dict[str, Any]:
    """What clients are answered while a replica is killed, and when all of them are answered as before again."""
    victim = replica()
    answers: Counter[str] = Counter()
    last = [0.0]
    began = time.perf_counter()

    def run(caller: int) -> None:
        client, number = Client(port), caller
        while time.perf_counter() - began < seconds:
            status, body = client.post(contents[number % len(contents)])
            if status == 200 and found(body) != expected[number % len(contents)]:
                answers["wrong"] += 1
            else:
                answers[str(status)] += 1
            if status != 200:
                last[0] = time.perf_counter() - began
            number += 1

    timer = threading.Timer(seconds / 3, os.kill, (victim, signal.SIGKILL))
    timer.start()
    together(2 * REPLICAS, run)
    timer.join()
    return {"answers": dict(answers), "killed_after_s": seconds / 3, "last_other_than_200_s": last[0]}


def found(body: bytes) -> Any:
    content = json.loads(body)
    content.pop("latency_ms")
    return content


def measure(seconds: float) -> dict[str, Any]:
    contents = pictures()
    alone: dict[str, Any] = {}
    with fai_fast.load(MODEL, precision=PRECISION) as model:
        alone["one caller, all cores a frame"] = load(
            1, seconds, lambda _: lambda number: model.infer(contents[number % len(contents)])
        )
    with fai_fast.load(MODEL, precision=PRECISION, num_threads=1) as model:
        expected = [model.infer(content).to_dict() for content in contents]
        for callers in (1, REPLICAS):
            alone[f"{callers} caller(s), one thread a frame"] = load(
                callers, seconds, lambda _: lambda number: model.infer(contents[number % len(contents)])
            )
    import ray
    from ray import serve

    began = time.perf_counter()
    # Its name is short, as those of the sockets in it may have about 100 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    try:
        port = start(folder)
        starting = time.perf_counter() - began
        client = Client(port)
        for content, right in zip(contents, expected, strict=True):
            status, body = client.post(content)
            if status != 200 or found(body) != right:
                raise RuntimeError(f"an answer is not what infer finds: {status} {body[:200]!r}")

        def ask(_: int) -> Callable[[int], None]:
            mine = Client(port)

            def one(number: int) -> None:
                status, body = mine.post(contents[number % len(contents)])
                if status != 200:
                    raise RuntimeError(f"{status}: {body[:200]!r}")

            return one

        served = {
            f"{callers} client(s)": load(callers, seconds, ask)
            for callers in (1, REPLICAS, 2 * REPLICAS, 4 * REPLICAS)
        }
        extra = overhead(port, contents, seconds)
        loss = killed(port, contents, expected, 3 * seconds)
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "machine": report.machine(),
        "load_average": os.getloadavg()[0],
        "picture": f"JPEG {SIZE[1]}x{SIZE[0]}, {MODEL}, {PRECISION}",
        "replicas": REPLICAS,
        "start_s": starting,
        "alone": alone,
        "served": served,
        "overhead_s": extra,
        "killed": loss,
    }


def table(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{kind}: {name}",
            f"{row['per_second']:.1f}",
            f"{1e3 * row['p50_s']:.1f} ms",
            f"{1e3 * row['p99_s']:.1f} ms",
            ", ".join(f"{kind} {1e3 * value:.1f}" for kind, value in sorted(row["cpu_s"].items())),
        ]
        for kind, part in (("one process", result["alone"]), ("Serve", result["served"]))
        for name, row in part.items()
    ]
    loss = result["killed"]
    return [
        *report.markdown(["", "pictures/s", "p50", "p99", "CPU ms a picture"], rows),
        "",
        f"{result['picture']}; {result['replicas']} replicas of one thread; {result['machine']['cpu']}; load average "
        f"{result['load_average']:.1f} at the end.",
        f"One request at a time takes {1e3 * result['overhead_s']:.1f} ms more than the model in this process.",
        f"A replica killed after {loss['killed_after_s']:.1f} s: answers by status {loss['answers']}, the last of them "
        f"other than 200 after {loss['last_other_than_200_s']:.1f} s (0: there is none).",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.ray_serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a second each, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    result = measure(1.0 if options.quick else 6.0)
    print("\n".join(table(result)))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return (
        1
        if "wrong" in result["killed"]["answers"] or set(result["killed"]["answers"]) - {"200", "503"}
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
