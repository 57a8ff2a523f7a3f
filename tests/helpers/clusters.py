"""Ray, as tests need it: whether it is there, and a cluster of two nodes of one core each on this machine."""

from __future__ import annotations

import importlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import fai_fast
import pytest

STORE = 80 << 20  # bytes of each node's object store


def without_ray(error):
    """Skips the module that could not import it; with FAI_FAST_REQUIRE_RAY=1 that is a failure."""
    if os.environ.get("FAI_FAST_REQUIRE_RAY") == "1":
        raise error
    pytest.skip(f"needs Ray and pyarrow, pip install 'fai-fast[ray]': {error}", allow_module_level=True)


@contextmanager
def cluster(caches):
    """A cluster that this process is connected to, with a node for each of some folders, where its cache is.

    Node i has one core, and 100 of the resource "node<i>", by which tests choose it.
    """
    import ray
    from ray.cluster_utils import Cluster

    root = Path(fai_fast.__file__).parents[1]
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        # Workers inherit the environment of what starts them.
        paths = [os.environ.get("PYTHONPATH", ""), str(root), str(Path(__file__).parents[1])]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Where Ray looks for a cluster of this machine; a short path, as its sockets lie there.
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        made = Cluster()
        try:
            for index, cache in enumerate(caches):
                add_node(made, index, cache)
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            context = importlib.import_module("ray.data").DataContext.get_current()
            context.enable_progress_bars = False
            # All workers of a test take part in it, however long one of them takes to start.
            context.wait_for_min_actors_s = 300
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def add_node(made, index, cache):
    """One more node, as :func:`cluster` makes them."""
    return made.add_node(
        num_cpus=1,
        num_gpus=0,
        object_store_memory=STORE,
        include_dashboard=False,
        resources={f"node{index}": 100},
        env_vars={"FAI_FAST_CACHE": str(cache)},
    )
