"""The methods of :class:`fai_fast.Detections` that make what other libraries and files hold of it, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from fai_fast.detections import arrow, focoos, formats, labels, panoptic
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

        ``mask`` is RLE with its counts as str, None for boxes only. Rows of panoptic results have ``is_thing`` too.

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

    @classmethod
    def from_dict(cls, content: Any) -> Detections:
        """Detections from :meth:`to_dict`, or from the text of :meth:`to_json`: equal, but without a label map.

        Raises TypeError, ValueError where something in it is not as it should be; the text names the field.
        """
        return labels.from_dict(cast("type[Detections]", cls), content)

    from_json = from_dict

    @classmethod
    def from_coco(
        cls,
        annotations_of_image: Any,
        *,
        size: Sequence[int],
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | Mapping[int, int] | None = None,
    ) -> Detections:
        """Detections from COCO's annotations or results of one picture, as :meth:`to_coco` writes them.

        Args:
            annotations_of_image: a list of objects with ``category_id``, ``bbox`` and, in all or in none, a
                ``segmentation`` of run lengths or polygons (which need OpenCV); without a ``score`` it is 1.
            size: (H, W) of the picture.
            class_names: names of the classes.
            category_ids: the id of each class, by class id; by default COCO's own where ``class_names`` are its 80, and
                else category ids are class ids.

        Raises:
            TypeError, ValueError: something in it is not as it should be; the text names the field.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[1], size=(6, 8))
            >>> Detections.from_coco(d.to_coco(42), size=(6, 8)) == d
            True
        """
        return labels.from_coco(
            cast("type[Detections]", cls), annotations_of_image, size, class_names, category_ids
        )

    def to_yolo(self: Any, *, confidence: bool = False) -> str:
        """The lines of a YOLO label file: the class and, from 0 to 1, x and y of its outline's corners.

        Where there are boxes only, the class and the box's center and sides. Holes are left out; the parts of a mask
        are joined to one outline, which walks from one to the next and back; a mask of one or two corners has no line.
        ``confidence`` adds the score. Masks need OpenCV (ImportError). Rows of class -1 are a ValueError.
        """
        return labels.to_yolo(self, confidence)

    @classmethod
    def from_yolo(
        cls, text: str, *, size: Sequence[int], class_names: Sequence[str] | None = None
    ) -> Detections:
        """Detections from a YOLO label file of a picture of ``size`` (H, W); its outlines' edges are inside.

        Raises TypeError, ValueError that names the line, and ImportError for outlines without OpenCV.
        """
        return labels.from_yolo(cast("type[Detections]", cls), text, size, class_names)

    def to_labelme(self: Any, image_path: str, *, exact: bool = False) -> dict[str, Any]:
        """LabelMe's JSON of the picture ``image_path``: polygons, or with ``exact`` masks, with their holes.

        A mask's parts share their ``group_id``; ``description`` is the score. Boxes become rectangles. Polygons need
        OpenCV (ImportError).
        """
        return labels.to_labelme(self, image_path, exact)

    @classmethod
    def from_labelme(cls, content: Any, *, class_names: Sequence[str] | None = None) -> Detections:
        """Detections from LabelMe's JSON, a dict or its text: polygons, rectangles and masks.

        Shapes of one label and ``group_id`` are one row. ``class_names`` numbers the labels; by default they are
        numbered as they come. Raises TypeError, ValueError that names the field.
        """
        return labels.from_labelme(cast("type[Detections]", cls), content, class_names)

    def to_label_image(self: Any, *, values: Literal["class", "row"] = "class") -> Any:
        """The label of each pixel, uint8 (H, W), or uint16 where 8 bits are too few.

        ``values="class"``: class ids, and the largest value (255 or 65535) for no row. ``"row"``: the row's number from
        1, and 0 for none. Where masks overlap, the best score has the pixel. Raises ValueError for boxes only.
        """
        return labels.to_label_image(self, values)

    def to_label_png(self: Any, *, values: Literal["class", "row"] = "class") -> bytes:
        """:meth:`to_label_image` as the bytes of a gray PNG of 8 or 16 bits."""
        return labels.to_label_png(self, values)

    @classmethod
    def from_label_png(
        cls, content: bytes, *, class_names: Sequence[str] | None = None, max_pixels: int = 1 << 28
    ) -> Detections:
        """A semantic result of a label PNG of classes, one row for each; the largest value (255, 65535) is no class.

        Raises TypeError, ValueError where it is not a gray PNG, or one of more than ``max_pixels``.
        """
        return labels.from_label_png(cast("type[Detections]", cls), content, class_names, max_pixels)

    def segment_map(self: Any) -> Int32:
        """int32 (H, W), the row + 1 that each pixel belongs to, 0 for none.

        Those of a selection are numbered by its own rows. Where masks overlap, the best score has the pixel. Raises
        ValueError for boxes only. Made anew at each call.
        """
        return panoptic.segment_map(self)

    def panoptic_png(self: Any) -> bytes:
        """:meth:`segment_map` as the bytes of COCO's panoptic PNG: an RGB pixel is the id R + 256 G + 65536 B.

        Raises ValueError where the result is not panoptic.
        """
        return panoptic.panoptic_png(self)

    def to_coco_panoptic(
        self: Any,
        image_id: int | str,
        file_name: str | None = None,
        *,
        category_ids: Sequence[int] | Mapping[int, int] | None = None,
    ) -> dict[str, Any]:
        """COCO's panoptic annotation of the picture, in JSON's types; :meth:`panoptic_png` has its pixels.

        ``{"image_id", "file_name", "segments_info": [{"id", "category_id", "isthing", "area", "bbox", "iscrowd",
        "score"}, ...]}``, where ``id`` is a row's number + 1 and ``bbox`` is [x, y, width, height] in pixels. Rows
        without pixels are left out.

        Args:
            image_id: the picture's id in the annotation file, an integer (NumPy's too) or a str.
            file_name: of the PNG; None for the picture's id and ".png".
            category_ids: the id of each class, by class id; by default COCO's own where ``class_names`` are its 80
                objects or its 133 panoptic classes, and class ids else.

        Raises:
            TypeError, ValueError: the result is not panoptic, or an argument is wrong, or has no id for a row's class.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[1], size=(6, 8), is_thing=[True],
            ...                query=[0], label_source=np.pad(np.zeros((2, 4), np.uint8), ((0, 4), (0, 4)),
            ...                                               constant_values=255))
            >>> d.to_coco_panoptic(42, category_ids=[7, 9])["segments_info"][0]["bbox"]
            [0, 0, 4, 2]
        """
        return panoptic.to_coco_panoptic(self, image_id, file_name, category_ids)

    @classmethod
    def from_coco_panoptic(
        cls,
        annotation: Any,
        png: bytes,
        *,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | Mapping[int, int] | None = None,
        stuff: Sequence[int] | None = None,
        max_pixels: int = 1 << 28,
    ) -> Detections:
        """A panoptic result of COCO's annotation of a picture and its PNG, as :meth:`to_coco_panoptic` writes them.

        Rows are the segments, in their order; each one's place is its ``query``.

        Args:
            annotation: an object with ``segments_info``; a segment without a ``score`` has 1.
            png: the bytes of the picture's PNG.
            class_names: names of the classes.
            category_ids: the id of each class, by class id; by default as of :meth:`to_coco_panoptic`.
            stuff: ids of the classes that are stuff; None where segments say ``isthing``, which COCO's own do not.
            max_pixels: of the PNG.

        Raises:
            TypeError, ValueError: something in it is not as it should be, or an id is in only one of the two; the text
                names the field.
            ImportError: without Pillow.

        Example:
            >>> d = model.infer(image)  # doctest: +SKIP
            >>> same = Detections.from_coco_panoptic(d.to_coco_panoptic(1), d.panoptic_png())  # doctest: +SKIP
        """
        return panoptic.from_coco_panoptic(
            cast("type[Detections]", cls), annotation, png, class_names, category_ids, stuff, max_pixels
        )

    def to_csv(self: Any, *, file: str = "", time: str | float | None = None, header: bool = True) -> str:
        """A line for each row, under the names of its columns.

        file, time, row, class_id, class_name, confidence, x1, y1, x2, y2, area, tracker_id, rle.

        ``rle`` is COCO's compressed run lengths, whose size is the frame's. ``file`` and ``time`` are written as given.
        """
        return labels.to_csv(self, file, time, header)

    def to_json_line(self: Any, *, file: str | None = None, time: str | float | None = None) -> str:
        """:meth:`to_dict` after ``file`` and ``time``, as a line of JSON."""
        return labels.to_json_line(self, file, time)

    def to_arrow(self: Any) -> Any:
        """A ``pyarrow.Table`` of one row, the picture's, whose columns Arrow and Parquet hold well.

        For each object ``class_id`` (int32), ``class_name``, ``confidence`` (float32), ``box`` (x1, y1, x2, y2),
        ``mask`` (COCO's compressed RLE, null for boxes only), ``area``, ``query``, ``tracker_id`` (or null) and
        ``is_thing`` (null unless panoptic), each a list; ``height`` and ``width`` of the picture; ``label_map``,
        whether there is one; ``latency_ms``, a struct of the stages, or null; ``error``, null here; and ``path`` and
        ``frame`` of :attr:`source` where there is one. The names of all classes are in the schema's metadata. Tables of
        several pictures are made by ``pyarrow.concat_tables``.

        Raises ImportError without pyarrow.

        Example:
            >>> d = Detections(xyxy=[[0, 0, 4, 2]], confidence=[0.5], class_id=[1], size=(6, 8))
            >>> Detections.from_arrow(d.to_arrow()) == d  # doctest: +SKIP
            True
        """
        return arrow.to_arrow(self)

    @classmethod
    def from_arrow(cls, row: Any, *, class_names: Sequence[str] | None = None) -> Detections:
        """Detections from a row of :meth:`to_arrow`, or of :class:`fai_fast.ray.Detector`: equal, with a label map too.

        Args:
            row: a ``pyarrow.Table`` or ``RecordBatch`` of one row, or a mapping from its columns to their values, as
                Ray Data's ``take()`` gives it. Other columns are not looked at, but for ``path`` and ``frame``, of
                which :attr:`source` is made.
            class_names: None for those that the table's schema has, or that rows tell; a class that no row is of is
                then called by its number.

        Raises:
            TypeError, ValueError: something in it is not as it should be, or it is the row of an error; the text says
                which.
        """
        return arrow.from_arrow(cast("type[Detections]", cls), row, class_names)

    @classmethod
    def from_parquet(
        cls, path: Any, *, class_names: Sequence[str] | None = None, skip_errors: bool = False
    ) -> Iterator[Detections]:
        """The pictures of a Parquet file, or of the files in a folder, one after another, as :meth:`from_arrow`.

        Args:
            path: of a file, or of a folder; what ``fai-fast predict --ray`` and Ray Data's ``write_parquet`` leave.
            class_names: see :meth:`from_arrow`.
            skip_errors: leave out the pictures that could not be read, whose rows are a ValueError otherwise.

        Raises:
            TypeError, ValueError, FileNotFoundError: nothing is there, it is damaged or something else; at the first
                result, or in its place.
            ImportError: pyarrow is missing.
        """
        return arrow.from_parquet(cast("type[Detections]", cls), path, class_names, skip_errors)

    def to_supervision(self: Any, *, compact: bool = False) -> Any:
        """A ``supervision.Detections`` of its own arrays.

        ``data["class_name"]`` holds the names. Only what is a row's own travels with it, as supervision moves and
        merges rows of different frames: its query, whether its mask is of a label map, and whether it is a thing (1),
        stuff (0) or neither (-1), in ``data`` under names with the prefix ``fai_fast_``. From those
        :meth:`from_supervision` makes the same masks, queries and label map again, also after rows were selected. What
        is the frame's does not travel: the size where there are no masks, and the names of classes that no row is of.

        Args:
            compact: masks as supervision's ``CompactMask``, a fraction of the memory, in place of booleans (N, H, W);
                older versions of supervision have none.

        Raises ImportError without supervision, or where it has no compact masks.
        """
        return formats.to_supervision(self, compact)

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
