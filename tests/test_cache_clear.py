"""``fai-fast cache clear`` in folders that are not only the cache's: what is not the cache's stays."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import fai_fast
import pytest
from fai_fast import cache, cli, download
from fai_fast.errors import FaiFastError, WeightsError
from fai_fast.weights import load_weights


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A cache as a model leaves it, with a download that is done, one that was interrupted, and a remembered hash."""
    root = tmp_path_factory.mktemp("used")
    with fai_fast.load("fai-mf-n-shapes", im_size=64, precision="fp32", cache_dir=root):
        pass
    path = download.cached_path("https://host/owner/a.pth", root)
    with cache.lock(path, "downloads"):
        path.write_bytes(b"weights")
        cache.Record.of(path, {"url": "https://host/owner/a.pth"}, {"mtime_ns": 1}).write(
            cache.record_path(path)
        )
    part = path.with_name("b.pth.part")
    part.write_bytes(b"half")
    said = {"url": "u", "from": "u", "etag": '"1"', "last_modified": None, "total": 9}
    cache.record_path(part).write_text(json.dumps(said))
    checkpoint = root.parent / "mine.pth"
    checkpoint.write_bytes(b"mine")
    os.utime(checkpoint, (1, 1))
    # What was changed a moment ago is not remembered.
    until = time.monotonic() + 60
    while not (root / "hashes").is_dir() or len(list((root / "hashes").iterdir())) < 2:
        cache.remembered_sha256(checkpoint, root)
        assert time.monotonic() < until
        time.sleep(0.1)
    return root


@pytest.fixture
def root(used, tmp_path, monkeypatch):
    """A copy of it, as FAI_FAST_CACHE, that may be spoiled."""
    place = tmp_path / "Downloads"
    shutil.copytree(used, place)
    monkeypatch.setenv("FAI_FAST_CACHE", str(place))
    monkeypatch.chdir(tmp_path)
    return place


def clear(capsys, *options):
    assert cli.main(["cache", "clear", "--yes", *options]) == 0
    return capsys.readouterr().out


def contents(folder):
    """Files and links, without the locks and marks that an empty cache keeps."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.suffix != ".lock" and path.name != ".fai_fast-cache"
    }


def test_all_that_is_the_caches_goes(root, capsys):
    kept = cache.list_artefacts(root)
    assert {item.path.suffix for item in kept} >= {".onnx", ".blob", ".pth", ".part"}
    assert clear(capsys).startswith(f"removed {len(kept)} files, ")
    assert contents(root) == set()


def test_a_cache_of_an_older_version_goes_too(root, capsys):
    marks = list(root.rglob(".fai_fast-cache"))
    assert len(marks) == 2
    for mark in marks:
        mark.unlink()
    os.utime(next(root.rglob("*.onnx")), (1, 1))  # as a copy without times has it
    clear(capsys)
    assert contents(root) == set()


def record(path, depends, info=None):
    cache.Record.of(path, depends, info).write(cache.record_path(path))


def strangers(root):
    """What others may keep where the cache is; some of it looks like ours."""
    mine = {
        "video.mp4.part": b"of a browser",
        "models/linux.iso.part": b"half",
        "models/mine/linux.iso.part": b"half",
        "models/mine/linux.iso.part.json": b'{"url": "https://host", "done": 3}',
        "models/mine/best.onnx": b"graph",
        "models/mine/best.onnx.json": b'{"epochs": 3}',
        "models/mine/deep/er/a.onnx": b"graph",
        "models/mine/notes.txt": b"notes",
        "weights/a.pth": b"weights",
        "weights/owner/a.pth": b"weights",
        "weights/owner/a.pth.json": b"[]",
        "weights/owner/b.pth.part": b"half",
        "hashes/md5.json": b"{}",
        "hashes/ab-cd.json": b'{"a": 1}',
        "hashes/notes.txt": b"notes",
        "photos/a.jpg": b"picture",
        "photos/a.jpg.json": b"{}",
    }
    for name, content in mine.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    # Exported engines have records of the same kind, and so has what an older version or a copy of ours left elsewhere.
    for name, depends in (
        ("models/mine/a.engine", {"targets": ["sm75"]}),
        ("photos/b.onnx", {"weights": "0"}),
        ("c.onnx", {"weights": "0"}),
        ("models/d.onnx", {"weights": "0"}),
        ("models/mine/deep/e.onnx", {"weights": "0"}),
    ):
        (root / name).write_bytes(b"content")
        record(root / name, depends)
        mine |= {name: b"content", f"{name}.json": cache.record_path(root / name).read_bytes()}
    # A file that took the place of one of ours is no longer what the record says.
    (root / "models/mine/changed.onnx").write_bytes(b"ours")
    record(root / "models/mine/changed.onnx", {"weights": "0"})
    (root / "models/mine/changed.onnx").write_bytes(b"theirs")
    mine |= {"models/mine/changed.onnx": b"theirs"}
    mine |= {"models/mine/changed.onnx.json": (root / "models/mine/changed.onnx.json").read_bytes()}
    return mine


@pytest.mark.parametrize("how", ["FAI_FAST_CACHE", "--cache-dir ."])
def test_what_others_keep_there_stays(root, capsys, monkeypatch, how):
    mine = strangers(root)
    options = ()
    if how != "FAI_FAST_CACHE":
        monkeypatch.delenv("FAI_FAST_CACHE")
        monkeypatch.chdir(root)
        options = ("--cache-dir", ".")
    clear(capsys, *options)
    assert contents(root) == set(mine)
    assert {name: (root / name).read_bytes() for name in mine} == mine


def test_folders_that_were_there_before_the_cache_are_not_its_own(tmp_path, monkeypatch, capsys):
    """The user's models/fai-mf-n-shapes, in which the cache then writes too."""
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "fai-mf-n-shapes"
    folder.mkdir(parents=True)
    mine = {"best.onnx": b"graph", "best.onnx.json": b"{}", "half.onnx.part": b"half"}
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    with fai_fast.load("fai-mf-n-shapes", im_size=64, precision="fp32"):
        pass
    assert contents(folder) > set(mine)
    clear(capsys)
    assert contents(folder) == set(mine)


def test_links_are_neither_followed_nor_removed(root, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "x").mkdir(parents=True)
    (elsewhere / "x" / "a.onnx").write_bytes(b"theirs")
    record(elsewhere / "x" / "a.onnx", {"weights": "0"})
    (elsewhere / "x" / ".fai_fast-cache").write_text("")
    folder = next(root.rglob("*.onnx")).parent
    (folder / "link.onnx").symlink_to(elsewhere / "x" / "a.onnx")
    (folder / "link.onnx.json").symlink_to(elsewhere / "x" / "a.onnx.json")
    (root / "models" / "linked").symlink_to(elsewhere / "x")
    shutil.move(root / "weights", elsewhere / "weights")
    (root / "weights").symlink_to(elsewhere / "weights")
    before = contents(elsewhere)
    clear(capsys)
    assert contents(elsewhere) == before
    assert (folder / "link.onnx").is_symlink()
    assert (root / "models" / "linked").is_symlink()
    assert (root / "weights").is_symlink()
    assert list(folder.glob("*.blob")) == []


def test_the_cache_itself_may_be_a_link(root, tmp_path, capsys, monkeypatch):
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "link"))
    clear(capsys)
    assert contents(root) == set()


def test_weights_that_were_put_there_by_hand_stay(root, capsys):
    path = root / "weights" / "owner-1" / "mine.pth"
    with cache.lock(path, "records"):
        path.write_bytes(b"mine")
        record(path, {"url": "u"}, {"by_hand": True})
    assert any(item.path == path for item in cache.list_artefacts(root))
    assert f"left {path}, which was put there by hand" in clear(capsys)
    assert path.read_bytes() == b"mine"


# ------------------------------------------------------------------------------------------------ without a home


@pytest.fixture
def homeless(monkeypatch):
    """No HOME, and a number for a user that no list has, as in `docker run --user 12345`."""
    for name in ("HOME", "FAI_FAST_CACHE", "XDG_CACHE_HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.skipif(os.name != "posix", reason="other systems always have one")
def test_without_a_home_folder_the_error_says_what_to_set(homeless, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for call in (cache.cache_folder, lambda: fai_fast.load("fai-mf-n-shapes", im_size=64)):
        with pytest.raises(
            FaiFastError, match=r"no home folder .* set FAI_FAST_CACHE or cache_dir= to a folder"
        ):
            call()
    assert cli.main(["cache"]) == 1
    assert "set FAI_FAST_CACHE" in capsys.readouterr().err
    with pytest.raises(FaiFastError, match=r"cache_dir: got '~/a', but no home folder is known"):
        cache.cache_folder("~/a")
    with pytest.raises(WeightsError, match=r"weights: got '~/a.pth', but no home folder is known"):
        load_weights("fai-mf-n-shapes", "~/a.pth")
    monkeypatch.setenv("FAI_FAST_CACHE", "~/a")
    with pytest.raises(FaiFastError, match=r"FAI_FAST_CACHE: got '~/a', but no home folder is known"):
        cache.cache_folder()
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "a"))
    assert cache.cache_folder() == Path(tmp_path / "a")
