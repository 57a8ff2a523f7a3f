"""Ray Serve, as tests need it: on a Ray of their own on this machine, and a client that says exactly what it sends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import tempfile
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import fai_fast
import pytest

STORE = 80 << 20  # bytes of the object store


def require_serve():
    """Skips the module that calls it where Ray Serve is missing; with FAI_FAST_REQUIRE_RAY=1 that is a failure."""
    try:
        import python_multipart  # noqa: F401

        with warnings.catch_warnings():
            # Of what Ray's modules do while they are imported.
            warnings.simplefilter("ignore")
            import ray.serve  # noqa: F401
    except ImportError as error:
        if os.environ.get("FAI_FAST_REQUIRE_RAY") == "1":
            raise
        pytest.skip(f"needs Ray Serve, pip install 'fai-fast[ray]': {error}", allow_module_level=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Served(NamedTuple):
    """Where it listens on 127.0.0.1."""

    port: int
    metrics: int


@contextmanager
def serving(cpus=2):
    """A Ray of one node with a Serve that has no application yet."""
    import ray
    from ray import serve

    # Not one of pytest's folders: the names of sockets in it may have about 100 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    root = Path(fai_fast.__file__).parents[1]
    served = Served(free_port(), free_port())
    with pytest.MonkeyPatch.context() as patch:
        # Workers inherit the environment of what starts them.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(Path(__file__).parents[1])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            _start(
                num_cpus=cpus,
                object_store_memory=STORE,
                _temp_dir=folder,
                _metrics_export_port=served.metrics,
                _system_config={"metrics_report_interval_ms": 1000},
            )
            options = {"host": "127.0.0.1", "port": served.port}
            serve.start(
                http_options=options, logging_config={"log_level": "ERROR", "enable_access_log": False}
            )
            yield served
        finally:
            if ray.is_initialized():
                serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start(**options):
    """Ray, which gives its processes half a minute to start: on a machine with much else to do, that is not enough."""
    import ray

    for attempt in range(4):
        try:
            ray.init(
                address="local",
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                **options,
            )
        except Exception as error:
            ray.shutdown()
            if attempt == 3 or "timed out during startup" not in str(error):
                raise
        else:
            return


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self):
        return json.loads(self.content)


class Client:
    """Speaks HTTP with an application, one connection a request."""

    def __init__(self, port, prefix=""):
        self.port = port
        self.prefix = prefix

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)

    def ask(self, method, path, body=None, **headers):
        """The answer; a body that is a list is sent in chunks, of a length that nobody is told."""
        connection = self.connection()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            chunked = isinstance(body, list)
            content = iter(body) if chunked else body
            # It may be refused while it is still sent.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self.prefix + path, content, named, encode_chunked=chunked)
            return answer_of(connection)
        finally:
            connection.close()

    def post(self, content, path="/", **headers):
        return self.ask("POST", path, content, **{"Content_Type": "image/jpeg", **headers})

    def get(self, path):
        return self.ask("GET", path)


def answer_of(connection):
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def replicas_of(deployment):
    """The actors of a deployment, ready or not, by their names."""
    import ray

    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    return {
        name: ray.get_actor(name, namespace="serve")
        for name in names
        if name.startswith("SERVE_REPLICA::") and f"#{deployment}#" in name
    }
