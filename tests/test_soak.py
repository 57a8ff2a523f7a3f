"""A short soak: nothing grows, nothing changes, nothing is left. ``bench/soak.py`` is also the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[1] / "bench" / "soak.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_few_hundred_frames_leave_nothing_behind(tmp_path):
    path = tmp_path / "soak.json"
    given = ["--small", "--frames", "500", "--warmup", "250", "--minutes", "5", "--json", str(path)]
    done = subprocess.run([sys.executable, str(SOAK), *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["problems"] == []
    assert report["frames"] >= 1000
    assert len(report["samples"]) >= 2
    assert set(report["ways"]) == {"infer", "submit", "threaded", "stream"}
