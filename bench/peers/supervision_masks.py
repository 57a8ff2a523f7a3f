"""supervision's tools for boolean mask stacks."""

from __future__ import annotations

import supervision as sv


def boxes(stack):
    return sv.mask_to_xyxy(stack)


def polygons(stack):
    return [sv.mask_to_polygons(mask) for mask in stack]


def rle(stack):
    return [sv.mask_to_rle(mask, compressed=True) for mask in stack]


def nms(detections, iou):
    return detections.with_nms(threshold=iou)
