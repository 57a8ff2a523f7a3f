"""Detections drawn on their picture: the names of :mod:`fai_fast.detections.drawing`, where they have always been."""

from fai_fast.detections.drawing import SUFFIXES, color, draw, save

__all__ = ["SUFFIXES", "color", "draw", "save"]
