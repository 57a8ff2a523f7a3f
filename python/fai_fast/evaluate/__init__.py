"""Accuracy on labeled pictures: COCO's mask AP of instance models, ADE20K's mIoU of semantic ones, PQ of panoptic ones.

What is measured is what :meth:`fai_fast.Model.infer` returns, in the pictures' own sizes. FocoosAI's published figures
come from its training code (``MaskFormerProcessor.eval_postprocess`` of FocoosAI/focoos), which selects differently: AP
from the 100 best pairs of query and class, so that one mask may count for several classes, and mIoU from the sum of all
queries' class probabilities at a pixel. So the two need not agree exactly.

All figures are percent, as in the registry and on the model cards.
"""

from fai_fast.evaluate.ade_data import AdeData, ade
from fai_fast.evaluate.coco_data import TOP_K as TOP_K
from fai_fast.evaluate.coco_data import CocoData, coco
from fai_fast.evaluate.comparison import TOLERANCE, Comparison, Run, compare
from fai_fast.evaluate.panoptic_data import PanopticData, PanopticScore, panoptic
from fai_fast.evaluate.report import AdeReport, ClassQuality, CocoReport, PanopticReport, Report, SizeEffect
from fai_fast.evaluate.running import IN_FLIGHT as IN_FLIGHT
from fai_fast.evaluate.shapes import BUCKETS as BUCKETS
from fai_fast.evaluate.shapes import COMPARED as COMPARED
from fai_fast.evaluate.stored import coco_results, coco_stored

__all__ = [
    "TOLERANCE",
    "AdeData",
    "AdeReport",
    "ClassQuality",
    "CocoData",
    "CocoReport",
    "Comparison",
    "PanopticData",
    "PanopticReport",
    "PanopticScore",
    "Report",
    "Run",
    "SizeEffect",
    "ade",
    "coco",
    "coco_results",
    "coco_stored",
    "compare",
    "panoptic",
]
