"""Engines and precisions held against each other on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fai_fast._arguments import check_number
from fai_fast.errors import FaiFastError
from fai_fast.evaluate.report import Report, _percent, _signed
from fai_fast.model import Model

# Percentage points that a precision or an engine may lose.
TOLERANCE = 0.5


@dataclass(frozen=True)
class Run:
    """One of the configurations that are compared.

    Attributes:
        engine, precision: what was asked for.
        report: what it gave, or None where it cannot run here.
        problem: why it cannot.
    """

    engine: str
    precision: str
    report: Report | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Engines and precisions on the same pictures; the first run is what the others are held against.

    Attributes:
        runs: in the order asked for; the first has a report.
        tolerance: percentage points of AP, mIoU or PQ that a run may lose.
    """

    runs: tuple[Run, ...]
    tolerance: float

    def difference(self, run: Run) -> float | None:
        """Percentage points of AP, mIoU or PQ above the first run's; None where one of them has no figure."""
        first, report = self.runs[0].report, run.report
        if first is None or report is None or first.headline is None or report.headline is None:
            return None
        return report.headline - first.headline

    @property
    def fallen(self) -> tuple[Run, ...]:
        """The runs that lose more than the tolerance."""
        differences = ((run, self.difference(run)) for run in self.runs)
        # What a sum of floats is off by is no loss.
        return tuple(run for run, by in differences if by is not None and by < -self.tolerance - 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return {
            "tolerance": self.tolerance,
            "runs": [
                {
                    "engine": run.engine,
                    "precision": run.precision,
                    "problem": run.problem,
                    "difference": self.difference(run),
                    "fell": run in self.fallen,
                    "report": None if run.report is None else run.report.to_dict(),
                }
                for run in self.runs
            ],
        }

    def table(self) -> str:
        """The metrics of each run, and how far it is from the first."""
        first = self.runs[0].report
        assert first is not None
        names = [f"{run.engine} {run.precision}" for run in self.runs]
        width = max(map(len, names))
        columns = [(key, key.rpartition("/")[2]) for key in first.metrics]
        head = "".join(f"  {title:>6}" for _, title in columns)
        lines = [
            f"{first.model} {first._inputs()}, {first._what()}",
            "",
            f"{'percent':<{width}}{head}  difference",
        ]
        for name, run in zip(names, self.runs, strict=True):
            if run.report is None:
                lines.append(f"{name:<{width}}  cannot run here: {run.problem}")
                continue
            figures = "".join(f"  {_percent(run.report.metrics[key]):>6}" for key, _ in columns)
            by = self.difference(run)
            text = _signed(None if run is self.runs[0] else by)
            mark = f"  fell by more than {self.tolerance:g}" if run in self.fallen else ""
            lines.append(f"{name:<{width}}{figures}  {text:>10}{mark}")
        return "\n".join(lines)


def compare(
    load: Callable[[str, str], Model],
    measure: Callable[[Model], Report],
    configurations: Sequence[tuple[str, str]],
    *,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Measures a model in several engines and precisions, one after the other.

    Args:
        load: makes the model of an engine and a precision; each is closed before the next is made.
        measure: such as ``CocoData.measure``.
        configurations: engines and precisions; the others are held against the first, which therefore must run.
        tolerance: percentage points that a run may lose.

    Raises:
        TypeError, ValueError: there are no configurations, or ``tolerance`` is not 0 to 100.
        Exception: what ``load`` raises for the first configuration, and ``measure`` for any. Where ``load`` refuses
            one of the others (FaiFastError, ValueError), the comparison says why.

    Example:
        >>> data = CocoData.read("val2017", "instances_val2017.json")  # doctest: +SKIP
        >>> load = lambda engine, precision: fai_fast.load(
        ...     "fai-mf-s-coco-ins", engine=engine, precision=precision, verify_precision=False
        ... )  # doctest: +SKIP
        >>> runs = [("openvino", "fp32"), ("openvino", "bf16")]  # doctest: +SKIP
        >>> print(compare(load, data.measure, runs).table())  # doctest: +SKIP
    """
    tolerance = check_number("tolerance", tolerance)
    if not 0 <= tolerance <= 100:
        raise ValueError(f"tolerance: got {tolerance}, expected 0 to 100 percentage points")
    if not configurations:
        raise ValueError("configurations: got none, expected at least one engine and precision")
    runs: list[Run] = []
    for engine, precision in configurations:
        try:
            model = load(engine, precision)
        except (FaiFastError, ValueError) as error:
            if not runs:
                raise
            runs.append(Run(engine, precision, problem=" ".join(str(error).split())))
            continue
        with model:
            runs.append(Run(engine, precision, report=measure(model)))
    return Comparison(tuple(runs), tolerance)
