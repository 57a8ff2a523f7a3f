"""Pictures a second on Ray Data with one and with two nodes of one core each, against one process of two cores.

``python -m bench.ray_data [--quick] [--json FILE]`` takes a minute and a half. All contenders read the same JPEGs and
give the same results, which is checked first; they take turns, round by round. A run on Ray is timed from the first
task's rows to the last one's, as its start is paid once; the start is told beside it. CPU time is that of this process
and all that it has started, Ray's own servers too; unlike the others it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fai_fast
from fai_fast import Detections
from fai_fast._scenes import draw
from fai_fast.ray import Detector
from PIL import Image

from bench import report

ROOT = Path(__file__).resolve().parents[1]
STORE = 80 << 20
TASK = 20  # pictures
SIZE = (480, 640)
ONE_PROCESS, ONE_CORE, ONE_NODE, TWO_NODES = (
    "infer in a loop, two threads",
    "Detector without Ray, one thread",
    "Ray, one node of one core",
    "Ray, two nodes of one core",
)


def pictures(folder: Path, count: int) -> list[str]:
    """JPEGs with drawn shapes; ten that differ, each several times."""
    drawn = [draw(seed, SIZE) for seed in range(10)]
    paths = [str(folder / f"{index:05d}.jpg") for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(drawn[index % len(drawn)]).save(path, quality=90)
    return paths


def cpu_seconds() -> float | None:
    """CPU time of this process and of all that descend from it, ended ones too; None without /proc."""
    used, children = {}, {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(place.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        # Its own, and that of those that it has waited for.
        used[pid] = sum(map(int, fields[11:15]))
    if os.getpid() not in used:
        return None
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0)
        waiting += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def on_ray(
    ray: Any, paths: Sequence[str], nodes: int, options: dict[str, Any]
) -> tuple[float, float | None, float, list[Any]]:
    """Seconds and CPU seconds a picture, seconds to the first rows, and the rows."""
    import pyarrow as pa

    tables = [pa.table({"path": list(paths[at : at + TASK])}) for at in range(0, len(paths), TASK)]
    where = {"resources": {"first": 1}} if nodes == 1 else {}
    found = ray.data.from_arrow(tables).map_batches(
        Detector,
        fn_constructor_kwargs=options,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=nodes),
        num_cpus=1,
        **where,
    )
    began = time.perf_counter()
    times, rows = [], []
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        times.append((time.perf_counter(), table.num_rows, cpu_seconds()))
        rows.append(table)
    (first, at_first, cpu_first), (last, _, cpu_last) = times[0], times[-1]
    rest = len(paths) - at_first
    cpu = None if cpu_first is None or cpu_last is None else (cpu_last - cpu_first) / rest
    return (last - first) / rest, cpu, first - began, rows


def rows_of(tables: Sequence[Any]) -> dict[str, Detections]:
    return {
        row["path"]: Detections.from_arrow(row, class_names=fai_fast.spec("fai-mf-n-shapes").classes)
        for table in tables
        for row in table.to_pylist()
    }


def measure(count: int, rounds: int) -> dict[str, Any]:
    """All contenders in turns; the figures in JSON's types."""
    import pyarrow as pa
    import ray
    import ray.data
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers import this module's Detector, and what it imports.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ.pop("OMP_NUM_THREADS", None)
    options = {"model": "fai-mf-n-shapes", "precision": "fp32", "engine": "openvino"}
    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float | None]] = {}
    starts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="fai_fast-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster()
        try:
            paths = pictures(Path(folder), count)
            # Where Ray looks for a cluster of this machine.
            os.environ["RAY_TMPDIR"] = folder
            for resources in ({"first": 100}, {"second": 100}):
                cluster.add_node(
                    num_cpus=1,
                    num_gpus=0,
                    object_store_memory=STORE,
                    include_dashboard=False,
                    resources=resources,
                )
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.wait_for_min_actors_s = 300
            plain = fai_fast.load(options["model"], precision="fp32", engine="openvino", num_threads=2)
            single = Detector(**options, num_threads=1)
            single._decoders, single._in_flight = None, 0  # as in a worker of one core
            expected = {path: single.model.infer(path) for path in paths[:TASK]}

            def loop() -> None:
                for path in paths:
                    plain.infer(path)

            def alone() -> None:
                for at in range(0, len(paths), TASK):
                    single(pa.table({"path": paths[at : at + TASK]}))

            def timed(name: str, run: Callable[[], None]) -> None:
                used, began = cpu_seconds(), time.perf_counter()
                run()
                seconds.setdefault(name, []).append((time.perf_counter() - began) / len(paths))
                now = cpu_seconds()
                cpu.setdefault(name, []).append(
                    None if used is None or now is None else (now - used) / len(paths)
                )

            plain.warmup()
            for _ in range(rounds):
                timed(ONE_PROCESS, loop)
                timed(ONE_CORE, alone)
                for name, nodes in ((ONE_NODE, 1), (TWO_NODES, 2)):
                    each, used, start, tables = on_ray(ray, paths, nodes, options)
                    found = rows_of(tables)
                    if len(found) != len(paths) or any(found[path] != expected[path] for path in expected):
                        raise AssertionError(f"{name} gives other results than infer")
                    seconds.setdefault(name, []).append(each)
                    cpu.setdefault(name, []).append(used)
                    starts.setdefault(name, []).append(start)
            plain.close()
        finally:
            ray.shutdown()
            cluster.shutdown()
    each = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pictures": count,
        "size": list(SIZE),
        "rounds": rounds,
        "pictures_per_second": {name: 1 / value for name, value in each.items()},
        "cpu_ms_per_picture": {
            name: None if None in values else 1e3 * statistics.median(values) for name, values in cpu.items()
        },
        "seconds_per_picture": seconds,
        "seconds_to_first_rows": starts,
        "ratios": {
            "two nodes / one process of two threads": each[ONE_PROCESS] / each[TWO_NODES],
            "two nodes / one node": each[ONE_NODE] / each[TWO_NODES],
            "one node / one core without Ray": each[ONE_CORE] / each[ONE_NODE],
        },
        "overhead_ms_per_picture": 1e3 * (each[ONE_NODE] - each[ONE_CORE]),
        "machine": report.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only try that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures down")
    args = parser.parse_args()
    measured = measure(*((60, 1) if args.quick else (400, 3)))
    for name, rate in measured["pictures_per_second"].items():
        start = measured["seconds_to_first_rows"].get(name)
        print(
            f"{name:<36}{rate:8.1f} pictures/s",
            f"{cpu:7.2f} ms of CPU each" if (cpu := measured["cpu_ms_per_picture"][name]) is not None else "",
            f"  first rows after {statistics.median(start):.1f} s" if start else "",
        )
    for name, ratio in measured["ratios"].items():
        print(f"{name:<44}{ratio:6.2f}x")
    print(f"Ray's overhead, one node: {measured['overhead_ms_per_picture']:.2f} ms a picture")
    if args.json is not None:
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
