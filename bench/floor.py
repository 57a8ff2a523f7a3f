"""What this machine moves and computes in a second, and the least time that some bytes and operations take there.

`python -m bench.floor` prints what it measures.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

_BYTES = 1 << 28  # a thread's buffer, many times any cache
_ROUNDS = 5


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second, the best of a few passes over memory that no cache holds."""

    read: float
    write: float


@dataclass(frozen=True)
class Floor:
    """Bytes that a kernel cannot avoid to move, and why these; float32 operations that it cannot avoid to run."""

    read: int
    written: int
    why: str
    operations: int = 0

    def seconds(self, threads: int) -> float:
        """The longer of the two: memory and arithmetic can work at the same time."""
        rate = bandwidth(threads)
        # Reads and writes share one bus, so their times add up.
        moving = self.read / rate.read + self.written / rate.write
        return max(moving, self.operations / arithmetic(threads)) if self.operations else moving


@cache
def bandwidth(threads: int) -> Bandwidth:
    """Measured with NumPy's vectorised max (reads only) and fill (writes only), a buffer for each thread."""
    buffers = [np.ones(_BYTES // 4, np.int32) for _ in range(threads)]
    total = threads * _BYTES
    return Bandwidth(
        read=total / _best([buffer.max for buffer in buffers]),
        write=total / _best([lambda b=buffer: b.fill(1) for buffer in buffers]),
    )


@cache
def arithmetic(threads: int) -> float:
    """Float32 operations a second of torch's matrix product at its best; a multiply-add is two."""
    needed = 2 * 2048**3
    return needed / _best([matrix_product(needed, threads)])


def matrix_product(operations: int, threads: int) -> Callable[[], object]:
    """One float32 product of square matrices, in torch, with about as many operations."""
    import torch

    side = round((operations / 2) ** (1 / 3))
    a, b, out = torch.ones(side, side), torch.ones(side, side), torch.empty(side, side)

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.mm(a, b, out=out)
        torch.set_num_threads(before)

    return run


def operations(onnx_path: Path) -> int:
    """Those of a graph's convolutions and matrix products, of which a multiply-add is two; nothing else is counted."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(onnx_path)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    found = 0
    for node in graph.node:
        if node.op_type == "Conv":
            found += 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            found += 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            [transposed] = [a.i for a in node.attribute if a.name == "transA"] or [0]
            found += 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]
        elif node.op_type == "Einsum" and len(node.input) == 2:
            [equation] = [a.s.decode() for a in node.attribute if a.name == "equation"]
            letters = equation.replace(" ", "").split("->")[0].split(",")
            sides = {
                letter: side
                for name, operand in zip(node.input, letters, strict=True)
                for letter, side in zip(operand, shapes[name], strict=True)
            }
            found += 2 * math.prod(sides.values())
        elif node.op_type == "ConvTranspose":
            found += 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "Einsum":
            raise NotImplementedError(f"operations of {node.op_type} {node.name}")
    return found


def _best(jobs: list[Callable[[], object]]) -> float:
    """Seconds until all jobs, each in a thread of its own, are done; NumPy gives up the GIL in them."""
    best = float("inf")
    for _ in range(_ROUNDS):
        workers = [threading.Thread(target=job) for job in jobs[1:]]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        jobs[0]()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return best


def touched(source: int, target: int) -> int:
    """Rows of the source that a bilinear resize to `target` rows reads with a weight above zero."""
    position = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    low = np.floor(position)
    return np.union1d(low, np.ceil(position)).size


if __name__ == "__main__":
    for count in (1, 2):
        rate = bandwidth(count)
        print(f"{count} thread(s): read {rate.read / 1e9:.1f} GB/s, write {rate.write / 1e9:.1f} GB/s")
