"""A Ray Serve application: ``serve run fai_fast.ray.serve:app model=fai-mf-s-coco-ins``. See docs/ray_serve.md.

Serve is the engine of it: it starts replicas, replaces those that fail, scales them, and balances requests among them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from fai_fast._extras import install
from fai_fast.ray.serve.settings import Settings
from fai_fast.registry import models

__all__ = ["app"]


def app(args: Mapping[str, Any]) -> Any:
    """The application, as ``serve run`` and Serve's configuration files call it; or for ``serve.run(app({...}))``.

    Two deployments: "Ingress" reads HTTP requests, "Model" has the model. They answer

    - ``POST /`` and ``POST /predict``: a picture as the body, or as the part ``file`` or ``image`` of a form;
    - ``GET /info``: what the model is; ``GET /healthz``: whether a replica answers.

    Args:
        args: arguments by name, as texts or as values of their types. Of the model: ``model`` (needed), ``weights``,
            ``engine``, ``precision``, ``im_size``, ``cache_dir``, see :func:`fai_fast.load`. For requests that say
            nothing else: ``threshold``, ``classes``, ``top_k``, see :meth:`fai_fast.Model.infer`.

            Of replicas: ``num_replicas`` (1; or "auto"), or ``min_replicas``, ``max_replicas`` and
            ``target_ongoing_requests`` to scale them; ``num_cpus`` of each (1), which are its threads, ``num_gpus`` of
            each (0), ``ingress_replicas`` (1).

            Of batches: ``max_batch_size`` (1, with a GPU 8), pictures that the engine takes at once;
            ``batch_wait_ms`` (5), how long the first waits for others.

            Limits: ``max_ongoing_requests`` of a replica (4, or two batches); ``max_queued_requests`` (64) that wait
            for a replica; ``max_body_bytes`` (20000000), ``max_pixels`` (50000000), ``timeout_s`` of a request (60);
            ``retry_after_s`` (1), what a client is told that came in vain.

    Returns:
        Serve's ``Application``.

    Raises:
        TypeError, ValueError: an argument is unknown, missing or wrong; the text names it.
        ImportError: Ray Serve is not installed.

    Example:
        >>> from ray import serve  # doctest: +SKIP
        >>> from fai_fast.ray.serve import app  # doctest: +SKIP
        >>> serve.run(app({"model": "fai-mf-s-coco-ins", "num_replicas": 2}))  # doctest: +SKIP
    """
    settings = Settings.read(args)
    _check_name(settings.model)
    try:
        from ray import serve
    except ImportError as missing:
        raise ImportError(f"fai_fast.ray.serve needs Ray Serve: {install('ray')}") from missing
    from fai_fast.ray.serve.ingress import Ingress
    from fai_fast.ray.serve.replica import Replica

    scaling = settings.autoscaling
    replicas = serve.deployment(
        name="Model",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=settings.ongoing,
        # Serve's own limit counts requests that are just being given to a replica with those that wait, and so refuses
        # some while replicas have nothing to do. The ingress counts.
        max_queued_requests=-1,
        **({"num_replicas": settings.num_replicas} if scaling is None else {"autoscaling_config": scaling}),
    )(Replica)
    ingress = serve.deployment(
        name="Ingress",
        # It waits most of the time.
        ray_actor_options={"num_cpus": 0},
        num_replicas=settings.ingress_replicas,
        # Above its own limit, so that who comes in vain is told so by it, in JSON.
        max_ongoing_requests=settings.inside + _REFUSED,
    )(Ingress)
    return ingress.bind(replicas.bind(settings), settings)


def _check_name(model: str) -> None:
    """ValueError for a name that nobody knows: Serve would try it several times, and not say what is wrong with it.

    What may be a path, or a repository's name, is for the nodes to tell.
    """
    path = PurePath(model)
    if len(path.parts) < 2 and not path.suffix and model not in models() and not os.path.exists(model):
        raise ValueError(f"model: got {model!r}, expected a path, or one of {', '.join(models())}")


# Requests that are being refused, and those for /healthz and /info, which hold no picture.
_REFUSED = 64
