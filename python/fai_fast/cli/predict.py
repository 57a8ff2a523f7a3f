"""``fai-fast predict``: pictures and videos from files, folders and cameras to JSON and drawn pictures."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast._core import __version__
from fai_fast._sizes import aspects_differ, size_text
from fai_fast.cli import predict_ray
from fai_fast.cli.growing import Document
from fai_fast.cli.interrupts import Interrupt
from fai_fast.cli.labels import FORMATS, Labels
from fai_fast.cli.labels import HELP as FORMAT_HELP
from fai_fast.cli.messages import STDOUT, UsageError, complain, counted, sentence, write_line
from fai_fast.cli.options import (
    MODEL_HELP,
    SOURCE_HELP,
    add_max_pixels,
    add_model_options,
    add_result_options,
    check_order,
    load,
    result_options,
    shaped,
    unsized,
)
from fai_fast.cli.paths import Moving, find_sources, identity, output_names
from fai_fast.cli.stream import Video
from fai_fast.cli.window import Window, open_window
from fai_fast.errors import FaiFastError
from fai_fast.images import SUFFIXES, VIDEO_SUFFIXES, picture_size

if TYPE_CHECKING:
    from fai_fast import Detections, Model, ModelSpec
    from fai_fast.stream import Stream

HELP = "find objects in pictures and videos: JSON, drawn pictures, drawn videos"
DESCRIPTION = f"""\
Runs a model on pictures and videos and writes, into a folder, each of them with what was found drawn on it, and
predictions.json. SOURCE is what `fai-fast stream` takes too, any number of times: a file, a folder of pictures, a
pattern, an address or a camera, which goes on until Ctrl-C. Videos and cameras need PyAV.
Of folders, the files with these suffixes are taken: {" ".join(sorted(SUFFIXES))}
Of patterns, videos too: {" ".join(sorted(VIDEO_SUFFIXES))}

The folder is `predictions`, or `predictions-2` and so on where an earlier run has written there: runs do not mix. With
--output it is the one that you name; what an earlier run has left there is only replaced with --overwrite.
A damaged picture is reported and the others go on; the exit code then is 1. Sources are never overwritten.

With --ray, pictures go to all machines of a cluster, and what is found in them into Parquet files in the folder, a row
a picture. Run again, it does what is missing, and what has failed; --overwrite begins anew.
"""
EPILOG = """\
the JSON, valid at every moment, with a line for each entry:
  {"fai_fast": version, "model": name, "task": "instance", "semantic" or "panoptic", "classes": [...],
   "im_size": [h, w], "engine": ..., "precision": ..., "images": [...]}
  of each picture, in order:
  {"file": as given, "size": [H, W], "picture": the drawn one or null, "latency_ms": {"decode": ..., ..., "total": ...},
   "detections": [{"xyxy": [x1, y1, x2, y2], "confidence": ..., "class_id": ..., "class_name": ..., "query": ...,
                   "tracker_id": null, "area": pixels, "mask": {"size": [H, W], "counts": COCO's compressed RLE}}, ...]}
                   of panoptic models "is_thing": true or false, too
  of each frame of a video, beside those: "frame": its number, "pts": seconds or null, and "picture" the drawn video
  or, of one that could not be read: {"file": as given, "error": why}
  A run that was ended before it was done (Ctrl-C, SIGTERM, an error, kill -9) leaves what it has, and
  "interrupted": true.
  A mask becomes an array with pycocotools.mask.decode(mask).

examples:
  fai-fast predict bisenetformer-m-ade street.jpg
  fai-fast predict fai-mf-s-coco-ins street.mp4 photos 'more/*.png'
  fai-fast predict fai-mf-m-coco-ins photos --recursive --output found --threshold 0.7
  fai-fast predict fai-mf-s-coco-ins 'photos/2026-*.png' --im-size 384x640 --no-images --json found.json
  fai-fast predict fai-mf-s-coco-ins photos --classes person,car --threshold person=0.7 --format yolo
  fai-fast predict fai-mf-s-coco-ins photos --recursive --ray --output found.parquet
  fai-fast predict my_model_folder frame.png --json - --no-images | jq '.images[].detections[].class_name'
"""

DOCUMENT = "predictions.json"
FOLDER = "predictions"
# The folders that runs make where they are not told another.
_FOLDERS = re.compile(rf"{FOLDER}(-[1-9][0-9]*)?")
# Pictures whose heads are read to find out the shape of all.
SAMPLED = 32

_log = logging.getLogger("fai_fast")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("inputs", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("-r", "--recursive", action="store_true", help="folders with all folders in them")
    add_result_options(parser)
    add_max_pixels(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help=f"folder to write to; default: {FOLDER}, or {FOLDER}-2, ... where there is one of an earlier run",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier run has written to the folder"
    )
    group.add_argument(
        "--json", metavar="FILE", help=f"default: DIR/{DOCUMENT}; - for stdout, with nothing else there"
    )
    group.add_argument("--format", action="append", choices=sorted(FORMATS), metavar="F", help=FORMAT_HELP)
    group.add_argument("--no-images", action="store_true", help="write the JSON only")
    group.add_argument(
        "--show", action="store_true", help="show each in a window: any key for the next one, q to end"
    )
    predict_ray.add_options(parser)
    add_model_options(
        parser,
        "of the model's own number of pixels, in the shape of the pictures where that is about the same for all, or "
        "of the video where it is the only source",
    )


def run(args: argparse.Namespace) -> int:
    check_order("predict", args.model, args.inputs)
    if args.ray is not None:
        return predict_ray.run(args)
    if args.ray_workers is not None:
        raise UsageError("--ray-workers: belongs to --ray")
    folder = _folder(args)
    sources, problems = find_sources(
        args.inputs, recursive=args.recursive, leave_out=[folder, *_earlier_folders()]
    )
    for problem in problems:
        complain(problem)
    if not sources:
        return 1
    document = str(folder / DOCUMENT) if args.json is None else args.json
    drawn = {} if args.no_images else _drawn(sources, folder)
    if any(isinstance(source, Moving) for source in sources):
        from fai_fast.stream.containers import _pyav

        _pyav()  # where it is missing, that is told before the model is loaded
    targets = [*drawn.values(), *([] if document == STDOUT else [Path(document)])]
    _protect(sources, targets)
    earlier = _earlier_pictures(folder) if args.overwrite else []
    if args.output is not None and not args.overwrite:
        _refuse_earlier(folder, [*drawn.values(), folder / DOCUMENT])
    interrupt: Interrupt = args.interrupt
    with ExitStack() as stack:
        window = None
        if args.show:
            window = open_window()
            stack.callback(window.close)
        stack.enter_context(
            _made({target.parent for target in targets} | ({folder} if args.format else set()))
        )
        results = stack.enter_context(Document(document, "images"))
        spec, size, opened = _shaped(args, sources, stack)
        model = stack.enter_context(load(args.model if spec is None else spec, args, size))
        _remove(earlier, sources)
        labels = None
        if args.format:
            labels = Labels(args.format, folder, model.spec, overwrite=args.overwrite)
        work = _Run(args, model, results, drawn, window, opened, labels)
        try:
            work.run(sources)
        finally:
            # Whatever has ended it, what was found until then is not lost.
            with interrupt.noted():
                results.end(interrupted=work.left)
                if labels is not None and work.done:
                    labels.end()
        with interrupt.noted():
            work.summarize(folder, document, len(problems))
    if interrupt.came and not work.done:
        raise KeyboardInterrupt
    return interrupt.code if interrupt.came else 1 if work.failed or problems else 0


def _shaped(
    args: argparse.Namespace, sources: Sequence[Path | Moving], stack: ExitStack
) -> tuple[ModelSpec | None, tuple[int, int] | None, Stream | None]:
    """What to load and in which size, where that is left to the sources; and the only source, where it was opened."""
    spec = unsized(args.model, args)
    if spec is None:
        return None, None, None
    moving = [source for source in sources if isinstance(source, Moving)]
    if not moving:
        pictures = [source for source in sources if isinstance(source, Path)]
        lowest, middle, longest = _sizes(pictures) or (spec.input_size,) * 3
        if aspects_differ(lowest, longest):
            middle = spec.input_size
            _log.info(
                "the pictures have several shapes, and the network's input keeps the model's own, %s; one shape at a "
                "time, it would get theirs",
                size_text(spec.im_size),
            )
        return spec, shaped(spec, middle, "the pictures"), None
    if len(sources) > 1:
        return spec, shaped(spec, None, ""), None
    from fai_fast.stream import Stream

    # It may be one that can be opened only once.
    opened = stack.enter_context(Stream(None, moving[0].source, max_pixels=args.max_pixels))
    return spec, shaped(spec, opened._first_size(), "the source's frames"), opened


def _sizes(pictures: Sequence[Path]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """(height, width) of the pictures of the least, the middle and the greatest aspect, in a sample of a long list.

    None where none can be read.
    """
    sample = pictures[:: -(-len(pictures) // SAMPLED)]
    found = [size for path in sample if (size := picture_size(path)) is not None]
    if not found:
        return None
    found.sort(key=lambda size: size[1] / size[0])
    return found[0], found[len(found) // 2], found[-1]


class _Run:
    """The sources one after another.

    Attributes:
        done: pictures, and frames of videos.
        failed: of those, the ones that could not be read.
        left: whether it ended before the last source did.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: Model,
        results: Document,
        drawn: dict[Path, Path],
        window: Window | None,
        opened: Stream | None,
        labels: Labels | None,
    ) -> None:
        self.done = self.failed = self.found = self.written = 0
        self.left = True
        self._args = args
        self._interrupt: Interrupt = args.interrupt
        self._model = model
        self._results = results
        self._head = _account(model)
        self._options = result_options(args, model)
        self._labels = labels
        self._drawn = drawn
        self._window = window
        self._opened = opened
        self._says = results.target != STDOUT

    def run(self, sources: Sequence[Path | Moving]) -> None:
        """All of them, unless a signal or the window ends it."""
        for index, source in enumerate(_progress(sources, self._args.quiet)):
            goes_on = self._video(source) if isinstance(source, Moving) else self._picture(source)
            if self._interrupt.came or not goes_on:
                cut = isinstance(source, Moving) and not goes_on
                self.left = cut or index + 1 < len(sources)
                return
        self.left = False

    def summarize(self, folder: Path, document: str, unusable: int) -> None:
        """The last line."""
        if not self.done:
            return
        what = [f"pictures in {folder}"] if self.written else []
        if document != STDOUT:
            what.append(document)
        _log.info(
            "%s, %s%s%s",
            counted(self.done, "picture"),
            counted(self.found, "object"),
            f", {self.failed + unusable} failed" if self.failed + unusable else "",
            f"; wrote {' and '.join(what)}" if what else "",
        )

    def _picture(self, path: Path) -> bool:
        """Whether the next one is wanted."""
        from fai_fast.images import read_image

        with self._interrupt.noted():
            started = time.perf_counter()
            try:
                frame = read_image(path, max_pixels=self._args.max_pixels)
                decode = 1e3 * (time.perf_counter() - started)
                # As a frame in memory: drawing needs it too, and decoding it again would take longer than the network.
                detections = self._model.infer(frame, **self._options)
            except (OSError, ValueError) as error:
                self._fail({"file": str(path)}, str(path), error)
                return True
            target = self._drawn.get(path)
            picture = self._draw(frame, detections, target is not None)
            if target is not None:
                from fai_fast import render

                render.save(target, picture)
                self.written += 1
            latency = detections.latency
            if self._says:
                total = "" if latency is None else f"  {latency.total:.1f} ms"
                write_line(f"{path}  {_summary(detections)}{total}")
            entry = _entry(str(path), detections, target)
            if latency is not None:
                entry["latency_ms"] = {
                    **latency._replace(decode=decode)._asdict(),
                    "total": decode + latency.total,
                }
            self._add(entry, detections)
        return self._window is None or self._window.show(picture, wait=True)

    def _video(self, source: Moving) -> bool:
        """As :meth:`_picture`; the frames of one source."""
        target = self._drawn.get(source.path)
        frames, before, started = self.done, self.found, time.perf_counter()
        broken: FaiFastError | None = None
        goes_on = True
        with ExitStack() as stack:
            stream = stack.enter_context(self._stream(source))
            video = None if target is None else stack.enter_context(Video(target, 1))
            bar = stack.enter_context(_progress(None, self._args.quiet))
            try:
                while goes_on:
                    try:
                        frame, detections = next(stream)
                    except StopIteration:
                        break
                    except (
                        FaiFastError
                    ) as error:  # what an engine cannot do with this frame, nor with the next
                        broken = error
                        break
                    except (OSError, ValueError) as error:
                        with self._interrupt.later():
                            self._fail({"file": source.name, "frame": None}, source.name, error)
                            frames += 1
                        continue
                    # No file ends within an entry, or within a frame.
                    with self._interrupt.later():
                        picture = self._draw_frame(frame, detections, video is not None)
                        if video is not None:
                            video.write(frame, picture, stream.rate)
                        place = {"frame": frame.id, "pts": frame.pts}
                        self._add(_entry(source.name, detections, target, place), detections)
                    bar.update()
                    goes_on = self._window is None or self._window.show(picture, wait=False)
            except KeyboardInterrupt:
                if not self._interrupt.came:  # some other handler's
                    raise
                self._interrupt.hold()
                goes_on = False
        if frames := self.done - frames:
            self.written += video is not None
            if self._says:
                rate = frames / (time.perf_counter() - started)
                found = counted(self.found - before, "object")
                write_line(f"{source.name}  {counted(frames, 'frame')}, {found}  {rate:.1f} fps")
        if broken is not None:
            raise broken
        return goes_on

    def _stream(self, source: Moving) -> Stream:
        if self._opened is None:
            return self._model.stream(source.source, max_pixels=self._args.max_pixels, **self._options)
        self._model._serve(self._opened, **self._options)
        return self._opened

    def _draw_frame(self, frame: Any, detections: Detections, saved: bool) -> Any:
        return self._draw(frame.image(), detections, saved) if saved or self._window is not None else None

    def _draw(self, pixels: Any, detections: Detections, saved: bool) -> Any:
        if not saved and self._window is None:
            return None
        from fai_fast import render

        return render.draw(pixels, detections)

    def _add(self, entry: dict[str, Any], detections: Detections) -> None:
        self._results.write(self._head, entry)
        self.done += 1
        self.found += len(detections)
        if self._labels is not None:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"
            self._labels.add(entry["file"], detections, time=now, frame=entry.get("frame"))

    def _fail(self, entry: dict[str, Any], name: str, error: Exception) -> None:
        why = sentence(error).removeprefix("image: ").removeprefix("source: ")
        complain(why if name in why else f"{name}: {why}")
        self._results.write(self._head, {**entry, "error": why})
        self.done += 1
        self.failed += 1


def _entry(
    name: str, detections: Detections, target: Path | None, place: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the JSON says of a picture or a frame."""
    content = detections.to_dict()
    latency = detections.latency
    return {
        "file": name,
        **(place or {}),
        "size": content["size"],
        "picture": None if target is None else str(target),
        "latency_ms": None if latency is None else {**latency._asdict(), "total": latency.total},
        "detections": content["detections"],
    }


def _summary(detections: Detections) -> str:
    counts = Counter(detections.class_name.tolist()).most_common()
    shown = [f"{count} {name}" for name, count in counts[:6]]
    return (
        ", ".join(shown + ([f"{len(counts) - 6} more classes"] if len(counts) > 6 else [])) or "nothing found"
    )


def _account(model: Model) -> dict[str, Any]:
    info = model.info()
    return {
        "fai_fast": __version__,
        "model": model.spec.name,
        "task": model.spec.task,
        "classes": list(model.spec.classes),
        "im_size": list(model.size),
        "engine": info["engine"]["engine"],
        "precision": info["precision"],
    }


def _progress(sources: Sequence[Any] | None, quiet: bool) -> Any:
    """A bar over the sources; without them, one that counts frames."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    # None: only where standard error is a terminal.
    disable = True if quiet else None
    unit = "frame" if sources is None else "source"
    return tqdm(sources, unit=unit, file=sys.stderr, leave=False, disable=disable)


# ------------------------------------------------------------------------------------------------ the folder


def _folder(args: argparse.Namespace) -> Path:
    """The folder that --output names, else the first of the usual ones that is free."""
    if args.output is not None:
        if not args.output:
            raise UsageError("--output: got '', expected a folder")
        return Path(args.output)
    folder, count = Path(FOLDER), 1
    while not (args.overwrite or _is_free(folder)):
        count += 1
        folder = Path(f"{FOLDER}-{count}")
    return folder


def _is_free(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _earlier_folders() -> list[Path]:
    """Where earlier runs have written to unless they were told where."""
    return [path for path in Path().glob(f"{FOLDER}*") if _FOLDERS.fullmatch(path.name) and path.is_dir()]


def _drawn(sources: Sequence[Path | Moving], folder: Path) -> dict[Path, Path]:
    names = output_names(map(_path_of, sources))
    return {path: folder / name for path, name in names.items()}


def _refuse_earlier(folder: Path, targets: Sequence[Path]) -> None:
    """UsageError where an earlier run's results would be lost, or mixed with this one's."""
    there = next((target for target in targets if target.exists()), None)
    if there is not None:
        raise UsageError(
            f"--output: {folder} has {there.relative_to(folder)} of an earlier run; give another folder, or --overwrite"
        )


def _earlier_pictures(folder: Path) -> list[Path]:
    """What an earlier run has written into the folder, as its own JSON lists it, and that JSON."""
    path = folder / DOCUMENT
    try:
        entries = json.loads(path.read_text("utf-8"))["images"]
        names = {Path(entry["picture"]) for entry in entries if entry.get("picture")}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(
            f"--overwrite: {path} is not of an earlier run, so what that has written is not known; give another folder"
        ) from None
    # It may have run in another folder, or this one was moved.
    here = folder.resolve()
    pictures = [name if name.resolve().is_relative_to(here) else folder / name.name for name in names]
    return [*pictures, path]


def _remove(paths: Sequence[Path], sources: Sequence[Path | Moving]) -> None:
    """Takes files away that an earlier run has written; never a source."""
    kept = {identity(path) for path in map(_path_of, sources) if path.exists()}
    for path in paths:
        if path.is_file() and identity(path) not in kept:
            path.unlink()


def _path_of(source: Path | Moving) -> Path:
    return source.path if isinstance(source, Moving) else source


@contextmanager
def _made(folders: set[Path]) -> Iterator[None]:
    """Makes folders; those that are empty in the end, as nothing was found, are taken away again."""
    made: list[Path] = []
    try:
        for folder in folders:
            for path in (*reversed(folder.parents), folder):
                if not path.exists():
                    path.mkdir(exist_ok=True)
                    made.append(path)
        yield
    finally:
        for path in reversed(made):
            with suppress(OSError):  # something is in it
                path.rmdir()


def _protect(sources: Sequence[Path | Moving], targets: Sequence[Path]) -> None:
    """UsageError where a target is one of the sources, under whatever name."""
    inputs = {identity(path): path for path in map(_path_of, sources) if path.exists()}
    for target in targets:
        if target.exists() and (path := inputs.get(identity(target))) is not None:
            raise UsageError(f"--output: {target} would overwrite the input {path}, give another folder")
        if target.is_dir():
            raise UsageError(
                f"--output: {target} is a folder, expected a place for a file; give another folder"
            )
    for parent in {parent for target in targets for parent in target.parents}:
        if parent.exists() and not parent.is_dir():
            raise UsageError(f"--output: {os.fspath(parent)} is a file, expected a folder")
