"""The networks in PyTorch, to read, to train, and to hold the deployed graph against.

Written for the reader, not for speed; parameters are named and shaped as in FocoosAI's published checkpoints, which
load unchanged. :func:`build` makes one from a registry name or a :class:`fai_fast.ModelSpec`, :func:`pretrained` one
with published weights to train on classes of one's own (docs/training.md).
"""

from __future__ import annotations

from fai_fast.reference.decoder import Prediction
from fai_fast.reference.network import Output, QueryMaskModel
from fai_fast.reference.pretrained import Pretrained, pretrained
from fai_fast.registry import ModelSpec, load_spec

__all__ = ["Output", "Prediction", "Pretrained", "QueryMaskModel", "build", "pretrained"]


def build(name_or_spec: str | ModelSpec) -> QueryMaskModel:
    """A network with PyTorch's default initialization, in training mode.

    Args:
        name_or_spec: a name in the registry, a folder or file with FocoosAI's model_info.json, or a ModelSpec.

    Raises:
        ValueError: no such model, or its configuration does not describe a network.

    Example:
        >>> model = fai_fast.reference.build("bisenetformer-s-ade").eval()
        >>> model(torch.zeros(1, 3, 128, 160)).mask_logits.shape
        torch.Size([1, 100, 16, 20])
    """
    return QueryMaskModel(load_spec(name_or_spec))
