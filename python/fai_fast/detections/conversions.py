"""The methods of :class:`fai_fast.Detections` that make what other libraries and files hold of it, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from fai_fast.detections import focoos, formats
from fai_fast.detections.arrays import Int32

if TYPE_CHECKING:
    from fai_fast.detections.result import Detections

__all__: list[str] = []


class _Conversions:
    """A part of Detections, which formats.py makes other things of: `self` is always one."""

    __slots__ = ()

    def to_rle(self: Any, *, num_threads: int | None = None) -> list[dict[str, Any]]:
        """COCO's compressed RLE of each full-frame mask, ``{"size": [H, W], "counts": bytes}``.

        The same bytes as ``pycocotools.mask.encode``. Raises ValueError for boxes only.
        """
        rle: list[dict[str, Any]] = self._masks().to_rle(num_threads=num_threads)
        return rle

    def to_polygons(self: Any) -> list[list[Int32]]:
        """The outer contours of each mask: int32 (M, 2) of x, y pixels in the frame. Holes are left out.

        Raises ImportError without OpenCV, ValueError for boxes only.
        """
        return formats.to_polygons(self)

    def to_dict(self: Any) -> dict[str, Any]:
        """Everything but the label map, in JSON's types.

        ``mask`` is RLE with its counts as str, None for boxes only.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[7], size=(6, 8))
            >>> d.to_dict()["detections"]  # doctest: +NORMALIZE_WHITESPACE
            [{'xyxy': [0.0, 0.0, 4.0, 2.0], 'confidence': 0.5, 'class_id': 7, 'class_name': '7',
              'query': -1, 'tracker_id': None, 'area': 8.0, 'mask': None}]
        """
        return formats.to_dict(self)

    def to_json(self: Any, *, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON."""
        return formats.to_json(self, indent)

    def to_coco(
        self: Any, image_id: int | str, *, category_ids: Sequence[int] | Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO's annotations of the rows, in JSON's types.

        Each has ``image_id``, ``category_id``, ``bbox`` [x, y, width, height], ``score``, ``area``, ``iscrowd`` 0 and,
        where there are masks, ``segmentation`` (RLE, its counts as str).

        Args:
            image_id: the picture's id in the annotation file, an integer (NumPy's too) or a str.
            category_ids: the id of each class, by class id. By default COCO's own where ``class_names`` are its 80
                (1 to 90, with gaps: "stop sign" is class 11 and category 13), and the class ids of other classes.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, or has no id for the class of a row.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[1], size=(6, 8))
            >>> d.to_coco(42, category_ids=[7, 9])[0]["category_id"]
            9
        """
        return formats.to_coco(self, image_id, category_ids)

    def to_focoos(self: Any) -> dict[str, Any]:
        """The JSON that FocoosAI's ``FocoosDetections`` reads.

        ``{"detections": [{"bbox", "conf", "cls_id", "label", "mask"}, ...], "latency": ...}``. ``bbox`` holds the
        inclusive integer corners x1, y1, x2, y2 of the mask, or of ``xyxy`` where there is none; ``mask`` is a base64
        PNG of one bit a pixel, (y2 - y1 + 1) x (x2 - x1 + 1), the whole object, or None for boxes only. ``latency`` has
        the seconds "preprocess" (with decoding), "inference" and "postprocess", or is None. Where there are tracker
        ids, each detection has a ``tracker_id`` too, which FocoosAI's class passes over.
        """
        return focoos.to_focoos(self)

    @classmethod
    def from_focoos(
        cls, source: Any, *, size: Sequence[int] | None = None, class_names: Sequence[str] | None = None
    ) -> Detections:
        """Detections from the JSON of FocoosAI's library, or of :meth:`to_focoos`.

        What the format has comes back equal: boxes in whole pixels, scores, classes, masks, tracker ids and latency. It
        has no queries (they are -1) and no label map; a semantic result comes back as masks. Masks of FocoosAI's own
        library lack the last row and column of their box, which nobody can restore.

        Args:
            source: a dict, its text (str or bytes), or a ``FocoosDetections``.
            size: (H, W) of the frame; None for the least that all boxes lie in, as the format does not have it.
            class_names: None for those that rows tell; a class that no row is of is called by its number.

        Raises:
            TypeError, ValueError: the text is not such JSON; it says which field of which detection is not as it
                should be. Masks of other sizes than their boxes are not unpacked.
            ImportError: there are masks, and Pillow is missing.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[1], size=(6, 8))
            >>> Detections.from_focoos(d.to_focoos(), size=(6, 8)) == d
            True
        """
        from fai_fast.detections.result import Latency

        return focoos.from_focoos(cast("type[Detections]", cls), source, Latency, size, class_names)

    def to_supervision(self: Any) -> Any:
        """A ``supervision.Detections`` of its own arrays.

        ``data["class_name"]`` holds the names. Only what is a row's own travels with it, as supervision moves and
        merges rows of different frames: its query and whether its mask is of a label map, in ``data`` under names with
        the prefix ``fai_fast_``. From those :meth:`from_supervision` makes the same masks, queries and label map again,
        also after rows were selected. What is the frame's does not travel: the size where there are no masks, and the
        names of classes that no row is of.

        Raises ImportError without supervision.
        """
        return formats.to_supervision(self)

    @classmethod
    def from_supervision(
        cls, detections: Any, *, size: Sequence[int] | None = None, class_names: Sequence[str] | None = None
    ) -> Detections:
        """Detections from a ``supervision.Detections``, of :meth:`to_supervision` or of anybody else.

        Where supervision has None, ``confidence`` becomes 1 and ``class_id`` -1. Rows of a semantic result have a label
        map again, as long as their masks do not overlap and no query is there twice.

        Args:
            detections: a ``supervision.Detections``.
            size: (H, W) of the frame; by default the masks', needed where there are none.
            class_names: by default those in ``data["class_name"]``, as far as rows tell them; a class that rows call by
                different names is called by its number.

        Raises:
            TypeError, ValueError: something in it does not fit, or the size is not known.

        Example:
            >>> detections = model.infer(image)  # doctest: +SKIP
            >>> same = Detections.from_supervision(
            ...     detections.to_supervision(), size=detections.size, class_names=detections.class_names
            ... )  # doctest: +SKIP
        """
        return formats.from_supervision(cast("type[Detections]", cls), detections, size, class_names)
