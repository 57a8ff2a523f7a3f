"""Every example of README.md and of the documentation: Python runs, commands are ones that the programs take.

The Python blocks of a page run in order, as one program, in an empty folder. A comment above a block says where that
cannot be:

    <!-- snippet: stand-ins -->          runs with the small model of the package in place of a published one, and
                                         with files of the names that the page uses
    <!-- snippet: checked, needs ... -->  is compiled and type-checked, as its GPU, camera, network or ROS is not here

A block of `text` right below one that runs is what it prints, whatever the numbers are.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fai_fast
import pytest
from fai_fast import cli, samples

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BUNDLED = "fai-mf-n-shapes"
BLOCK = re.compile(
    r"(?:<!-- snippet: (?P<mark>.*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
MARKS = re.compile(r"stand-ins|checked, needs \w.*")
# Languages that are no programs.
PROSE = {"", "text", "json", "yaml"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    mark: str
    language: str
    text: str
    output: str | None

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("checked")


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    text = page.read_text("utf-8") if text is None else text
    found = list(BLOCK.finditer(text))
    blocks = []
    for match, following in itertools.zip_longest(found, found[1:]):
        between = "-" if following is None else text[match.end() : following.start()]
        output = (
            following["text"]
            if following and following["language"] == "text" and not between.strip()
            else None
        )
        line = text.count("\n", 0, match.start("language")) + 1
        blocks.append(Block(page, line, match["mark"] or "", match["language"], match["text"], output))
    return blocks


BLOCKS = {page.relative_to(ROOT).as_posix(): blocks_of(page) for page in PAGES}
WITH_PYTHON = [name for name, blocks in BLOCKS.items() if any(block.language == "python" for block in blocks)]


def ends_of(block: Block) -> tuple[str, str]:
    """Lines that nothing prints, before and after what a block does."""
    return f"=== what line {block.line} prints begins here ===", f"=== and ends here: {block.line} ==="


def program(blocks: list[Block]) -> str:
    """One program of a page's blocks, with lines where the page has them, that marks the end of what each prints."""
    lines: list[str] = []
    for block in blocks:
        text = block.text
        if block.mark == "stand-ins":
            for name in fai_fast.models():
                if name != BUNDLED:
                    text = text.replace(f'"{name}"', f'"{BUNDLED}"')
            # A size that suits the published ones takes long with every other.
            text = text.replace("im_size=640", "im_size=192").replace("SIDE = 256", "SIDE = 64")
        if not block.runs:
            continue
        lines += [""] * (block.line - len(lines))
        if block.output is not None:
            begin, end = ends_of(block)
            # The line of the page that opens the block is free for it.
            lines[-1] = f"print({begin!r}, flush=True)"
            text = f"{text}print({end!r}, flush=True)\n"
        lines += text.splitlines()
    return "\n".join(lines) + "\n"


def shape_of(text: str) -> list[str]:
    """What a text says whatever the numbers and classes are, which differ between precisions: its kinds of lines."""
    classes = "|".join(fai_fast.spec(BUNDLED).classes)
    kinds = (
        re.sub(rf"\b(?:{classes})\b", "CLASS", re.sub(r"-?\d[\d.,]*", "0", line))
        for line in text.splitlines()
    )
    return list(dict.fromkeys(" ".join(kind.split()) for kind in kinds if kind.strip()))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def video(path: Path) -> None:
    """Twelve frames of the sample, which moves."""
    av = pytest.importorskip("av")
    import numpy as np
    from fai_fast.images import read_image

    picture = read_image(samples.path("shapes.jpg"))
    picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * i, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def coco(folder: Path, scenes: int) -> None:
    """Labeled pictures, of classes that no model has."""
    pytest.importorskip("cv2", reason="draws them")
    sys.path.append(str(ROOT / "tools"))
    try:
        import shapes_dataset
    finally:
        sys.path.pop()
    file = shapes_dataset.write(folder, scenes, 128)
    document = json.loads(file.read_text("utf-8"))
    for category in document["categories"]:
        category["name"] += " of mine"
    file.write_text(json.dumps(document), "utf-8")


def put_stand_ins(folder: Path, text: str) -> None:
    """Files of the names that a page uses."""
    for name in set(re.findall(r'"([\w/]+\.jpg)"', text)) - {"shapes.jpg"}:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples.path("shapes.jpg"), place)
    for name in set(re.findall(r'"([\w/]+\.mp4)"', text)):
        video(folder / name)
    for name in set(re.findall(r'"(pears/\w+)', text)):
        coco(folder / name, 4)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page, tmp_path, cache):
    blocks = [block for block in BLOCKS[page] if block.language == "python"]
    running = [block for block in blocks if block.runs]
    if not running:
        pytest.skip("needs what is not here: checked below")
    for module in ("supervision", "torch", "cv2", "pycocotools", "ray"):
        if any(re.search(rf"^\s*(?:import|from) {module}\b", block.text, re.MULTILINE) for block in running):
            pytest.importorskip(module)
    put_stand_ins(tmp_path, "".join(block.text for block in running if block.mark == "stand-ins"))
    (tmp_path / "page.py").write_text(program(running), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "page.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FAI_FAST_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{page}\n{done.stdout}{done.stderr}"
    said = done.stdout
    for block in running:
        if block.output is not None:
            begin, end = ends_of(block)
            _, begun, said = said.partition(f"{begin}\n")
            shown, ended, said = said.partition(f"{end}\n")
            assert begun
            assert ended
            assert shape_of(shown) == shape_of(block.output), f"{page}:{block.line}"


def test_what_does_not_run_here_is_well_typed(tmp_path):
    pytest.importorskip("mypy")
    from mypy import api

    names = []
    unrun = set()
    for page in WITH_PYTHON:
        blocks = [block for block in BLOCKS[page] if block.language == "python"]
        if all(block.runs for block in blocks):
            continue
        name = re.sub(r"\W", "_", page) + ".py"
        lines: list[str] = []
        for block in blocks:
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
            if not block.runs:
                unrun |= {f"{name}:{number}:" for number in range(block.line, len(lines) + 1)}
        text = "\n".join(lines) + "\n"
        compile(text, page, "exec")
        (tmp_path / name).write_text(text, "utf-8")
        names.append(name)
    assert names
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = True\nallow_redefinition = True\n"
        # To read these takes a minute, and it is our own names that are checked.
        "[mypy-torch.*,transformers.*,ray.*,onnx.*,pandas.*,scipy.*,supervision.*]\nfollow_imports = skip\n"
    )
    out, err, _ = api.run(
        [
            "--config-file",
            str(tmp_path / "mypy.ini"),
            "--check-untyped-defs",
            "--no-error-summary",
            "--follow-imports=silent",
            "--cache-dir",
            str(tmp_path / "cache"),
            *(str(tmp_path / name) for name in names),
        ]
    )
    assert err == ""
    # What runs may know more than its types tell.
    assert [
        line for line in out.splitlines() if any(place in line for place in unrun) and ": error:" in line
    ] == []
    assert all(re.search(r":\d+: (?:error|note):", line) for line in out.splitlines()), out


def test_marks_are_known():
    marks = {block.mark for blocks in BLOCKS.values() for block in blocks if block.mark}
    assert "stand-ins" in marks
    assert [mark for mark in marks if not MARKS.fullmatch(mark)] == []
    # A mark that belongs to no block would leave one unmarked that needs it.
    for page in PAGES:
        marked = [block for block in BLOCKS[page.relative_to(ROOT).as_posix()] if block.mark]
        assert page.read_text("utf-8").count("<!-- snippet:") == len(marked), page


def test_blocks_are_found_as_they_are_written():
    text = (
        "a\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
        "<!-- snippet: checked, needs a GPU -->\n```python\nx\n```\nb\n```text\n2\n```\n"
    )
    first, shown, second, _ = blocks_of(Path("a.md"), text)
    assert (first.line, first.runs, first.output, first.text) == (2, True, "1\n", "print(1)\n")
    assert shown.language == "text"
    assert (second.runs, second.output) == (False, None)
    assert program([first]).splitlines()[2] == "print(1)"
    assert [line[:6] for line in program([first]).splitlines()] == ["", "print(", "print(", "print("]
    assert shape_of("a  1.5 ms\n\n-2\ndisc 3\nstar  4") == ["a 0 ms", "0", "CLASS 0"]


COMMANDS = [
    (f"{page}:{block.line}", line)
    for page, blocks in BLOCKS.items()
    for block in blocks
    if block.language in ("bash", "")
    for line in block.text.replace("\\\n", " ").splitlines()
]


def words(line: str) -> list[list[str]]:
    """The commands of a line of a shell, without what they are joined by."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            commands.append([])
        elif not set(word) <= set("<>"):
            commands[-1].append(word)
    return [command for command in commands if command]


@pytest.mark.parametrize(
    ("where", "line"),
    [(where, line) for where, line in COMMANDS if re.match(r"[\w./$\"'= -]*fai-fast ", line)],
)
def test_commands_are_ones_that_fai_fast_takes(where, line, capsys):
    for command in words(line):
        if "fai-fast" not in command:
            continue
        arguments = command[command.index("fai-fast") + 1 :]
        code = 0
        try:
            cli._parser().parse_args(arguments)
        except SystemExit as done:  # of --help and --version too
            code = done.code
        assert code == 0, f"{where}: {line}\n{capsys.readouterr().err}"


def test_programs_that_are_called_are_there():
    called = [
        (where, name)
        for where, line in COMMANDS
        for name in re.findall(r"(?:^|\s)((?:tools|examples|bench|tests)/[\w/]+\.(?:py|sh))", line)
    ]
    assert len(called) > 3
    assert [(where, name) for where, name in called if not (ROOT / name).is_file()] == []


def test_languages_are_ones_that_are_tried():
    languages = {(page, block.language) for page, blocks in BLOCKS.items() for block in blocks}
    assert [(page, name) for page, name in languages if name not in {*PROSE, "python", "bash", "xml"}] == []
