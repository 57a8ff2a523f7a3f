"""What the documents say of the program and of its models is what these say of themselves."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import fai_fast
import pytest
from fai_fast import samples
from fai_fast.images import read_image
from fai_fast.registry.shapes import count_parameters

ROOT = Path(__file__).resolve().parents[1]
WITH_TABLE = ("README.md", "docs/models.md")


@pytest.fixture(scope="module")
def tools():
    """The folder of the programs that write documents, importable."""
    sys.path.insert(0, str(ROOT / "tools"))
    yield
    sys.path.remove(str(ROOT / "tools"))


def rows_of(page):
    text = (ROOT / page).read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {line[0].strip("`"): line[1:] for line in cells if line[0].strip("`") in fai_fast.models()}


def test_generated_parts_are_those_of_this_program(tools, capsys):
    import models_table

    import docs

    code = models_table.refresh(check=True)
    assert code == 0, capsys.readouterr().err
    same = docs.PAGE.read_text("utf-8") == docs.page()
    assert same, "docs/command_line.md is not what --help says: run python tools/docs.py"


@pytest.mark.parametrize("page", WITH_TABLE)
def test_the_table_has_every_model_with_what_the_registry_says(page):
    rows = rows_of(page)
    assert set(rows) == set(fai_fast.models())
    for name, (finds, classes, accuracy, parameters, gflop, *_, t4) in rows.items():
        spec = fai_fast.spec(name)
        assert finds == ("objects" if spec.task == "instance" else "areas")
        assert int(classes) == len(spec.classes)
        kind, percent = accuracy.split()
        metric = {"AP": "segm/AP", "mIoU": "sem_seg/mIoU"}[kind]
        assert float(percent) == pytest.approx(spec.metrics[metric], abs=0.051)
        assert float(parameters.removesuffix(" M")) * 1e6 == pytest.approx(count_parameters(spec), abs=51_000)
        assert float(gflop) > 1
        published = [item.mean_ms for item in spec.published_latency if "ensorrt" in item.engine]
        assert (t4 == "") == (not published)
        if published:
            assert float(t4.removesuffix(" ms")) == pytest.approx(min(published), abs=0.051)


def test_measurements_are_of_the_models_that_there_are(tools):
    import models_table

    measured = json.loads(models_table.MEASURED.read_text("utf-8"))
    assert set(measured["models"]) == set(fai_fast.models())
    assert {"date", "command", "machine", "input"} <= set(measured)


def test_a_document_without_a_place_for_the_table_is_refused(tools):
    import models_table

    place = f"a\n{models_table.BEGIN}\nold\n{models_table.END}\nb\n"
    assert models_table.with_table(place, "new") == (
        f"a\n{models_table.BEGIN}\n\nnew\n\n{models_table.END}\nb\n"
    )
    for wrong in ("", place * 2, models_table.BEGIN):
        with pytest.raises(ValueError, match="expected one from"):
            models_table.with_table(wrong, "new")


def test_the_command_line_has_every_command_and_option(tools):
    import docs

    text = docs.PAGE.read_text("utf-8")
    for name, parser in docs.commands().items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        options = [option for action in shown for option in action.option_strings if action.dest != "help"]
        assert [option for option in options if f"`{option}`" not in section] == []


def test_the_picture_is_of_the_sample():
    drawn = read_image(ROOT / "docs" / "images" / "shapes_demo.jpg")
    sample = read_image(samples.path("shapes.jpg"))
    assert drawn.shape[0] >= sample.shape[0]
    assert drawn.shape[1] >= sample.shape[1]


def test_links_between_documents_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wrong = []
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            file = (page.parent / path) if path else page
            if not file.is_file():
                wrong.append((page.name, target))
            elif anchor and not anchor.startswith("fai_fast"):
                headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings
                }
                if anchor not in slugs:
                    wrong.append((page.name, target))
    assert wrong == []
