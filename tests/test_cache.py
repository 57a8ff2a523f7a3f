"""What is kept is whole, is of what was asked for, and is made once, whoever else is at it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from fai_fast import cache
from fai_fast.errors import FaiFastError

DEPENDS = {"model": "abc", "size": [640, 640], "precision": "fp32"}

# Builds "slow.bin" from a process of its own; every build adds a line to "builds".
BUILDER = """
    import sys, time
    from pathlib import Path
    from fai_fast import cache

    folder = Path(sys.argv[1])

    def build(path):
        with open(folder / "builds", "a") as log:
            log.write(f"{path}\\n")
        path.write_bytes(b"half")
        (folder / "building").touch()
        for _ in range(3000):  # a test that failed must not leave this waiting for ever
            if (folder / "finish").exists():
                break
            time.sleep(0.01)
        path.write_bytes(b"whole")

    print(cache.artefact(folder / "slow.bin", {"a": 1}, build).built)
"""


def start_builder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILDER), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.01)


class Build:
    """Writes its text, and counts how often."""

    def __init__(self, text: str = "content", info: dict | None = None) -> None:
        self.text, self.info, self.calls = text, info, 0

    def __call__(self, path: Path) -> dict | None:
        self.calls += 1
        path.write_text(self.text)
        return self.info


def names(folder: Path) -> set[str]:
    """The files in a folder, but for locks and the cache's mark."""
    return {
        path.name
        for path in folder.iterdir()
        if not path.name.endswith(".lock") and path.name != ".fai_fast-cache"
    }


def reason_of(path: Path, depends=DEPENDS) -> str | None:
    """Why the artefact was built again; it must be whole afterwards, and not be built another time."""
    build = Build("new")
    kept = cache.artefact(path, depends, build)
    assert (kept.built, build.calls) == (kept.reason is not None, int(kept.built))
    assert not cache.artefact(path, depends, build).built
    assert path.read_text() == "new"
    return kept.reason


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    cache.artefact(path, DEPENDS, Build("old"))
    return path


def test_an_artefact_is_built_once_and_remembered(tmp_path, caplog):
    path = tmp_path / "new" / "folder" / "graph.onnx"
    build = Build(info={"points": (1, 2)})
    with caplog.at_level(logging.DEBUG, "fai_fast"):
        first = cache.artefact(path, DEPENDS, build)
        second = cache.artefact(path, DEPENDS, build)
    assert build.calls == 1
    assert (first.built, first.reason) == (True, "not there yet")
    assert (second.built, second.reason) == (False, None)
    assert first.info == second.info == {"points": [1, 2]}
    assert first.sha256 == second.sha256 == cache.sha256_of(path)
    assert first.size == second.size == len("content")
    assert [record.getMessage() for record in caplog.records] == [f"built {path}: not there yet"]
    assert names(path.parent) == {"graph.onnx", "graph.onnx.json"}


def test_sha256_is_the_one_of_the_standard(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert cache.sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_build_writes_beside_the_artefact_and_keeps_its_suffix(tmp_path):
    seen = []

    def build(path):
        seen.append(path)
        path.write_text("x")

    cache.artefact(tmp_path / "graph.onnx", {}, build)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".onnx"
    assert seen[0].name != "graph.onnx"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "fp16"}, "precision was fp32, is fp16"),
        ({"size": [384, 640]}, "size was [640, 640], is [384, 640]"),
        ({"size": (384, 640), "model": "x" * 100}, "model changed; size was [640, 640], is [384, 640]"),
        ({"engine": "openvino"}, "engine is new"),
        ({"size": True}, "size was [640, 640], is true"),
    ],
)
def test_a_stale_artefact_is_built_again_and_says_why(kept, changes, reason):
    assert reason_of(kept, {**DEPENDS, **changes}) == reason


def test_what_no_longer_matters_makes_stale_too(kept):
    assert reason_of(kept, {"model": "abc", "size": [640, 640]}) == "precision is gone"


def test_numbers_and_booleans_are_different_dependencies(tmp_path):
    cache.artefact(tmp_path / "a", {"x": 1}, Build())
    assert reason_of(tmp_path / "a", {"x": True}) == "x was 1, is true"


def test_tuples_and_lists_are_the_same_dependency(kept):
    assert not cache.artefact(kept, {**DEPENDS, "size": (640, 640)}, Build()).built


def test_a_damaged_file_is_built_again(kept):
    kept.write_text("odl")
    assert reason_of(kept) == "file is corrupt: its SHA-256 is not the one on record"
    kept.write_text("longer")
    assert reason_of(kept) == "file is corrupt: 6 bytes, expected 3"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"depends": {}, "size": "1"}', "\xff\xfe", "[" * 100_000]
)
def test_an_unreadable_record_means_building_again(kept, text):
    cache.record_path(kept).write_bytes(text.encode("latin-1"))
    assert reason_of(kept).startswith("record is unreadable: ")


FOREIGN = {
    "empty": b"",
    "text": b"not what you think\n",
    "json": b'{"depends": {}, "size": 0, "sha256": "", "info": {}, "created": "", "mtime_ns": 0}',
    "deep": b"[" * 100_000,
    "wide numbers": b'{"size": ' + b"9" * 10_000 + b"}",
    "binary": bytes(range(256)) * 64,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("whose", ["record", "file"])
def test_foreign_files_in_the_places_of_ours_are_replaced(kept, content, whose):
    """Records, and files beside records that do not describe them."""
    (cache.record_path(kept) if whose == "record" else kept).write_bytes(content)
    assert cache.artefact(kept, DEPENDS, Build("new")).built
    assert not cache.artefact(kept, DEPENDS, Build("newer")).built
    assert kept.read_text() == "new"


def test_a_record_with_wrong_types_is_unreadable(kept):
    record = json.loads(cache.record_path(kept).read_text())
    for key, value in [
        ("size", "3"),
        ("size", True),
        ("sha256", None),
        ("depends", []),
        ("info", 1),
        ("created", 2),
    ]:
        cache.record_path(kept).write_text(json.dumps({**record, key: value}))
        assert reason_of(kept).startswith("record is unreadable: ")


def test_a_missing_record_means_building_again(kept):
    cache.record_path(kept).unlink()
    assert reason_of(kept) == "record is missing"


def test_a_missing_file_means_building_again(kept):
    kept.unlink()
    assert reason_of(kept) == "not there yet"


def failing(path: Path) -> None:
    path.write_text("half")
    path.with_name(path.name + ".data").write_text("more")
    raise KeyError("build")


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(KeyError, match="build"):
        cache.artefact(tmp_path / "graph.onnx", {}, failing)
    assert names(tmp_path) == set()
    assert cache.artefact(tmp_path / "graph.onnx", {}, Build()).built


def test_a_failed_build_leaves_the_old_artefact(kept):
    with pytest.raises(KeyError, match="build"):
        cache.artefact(kept, {}, failing)
    assert names(kept.parent) == {"graph.onnx", "graph.onnx.json"}
    assert not cache.artefact(kept, DEPENDS, Build()).built
    assert kept.read_text() == "old"


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def build(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.artefact(tmp_path / "a", {}, build)
    assert names(tmp_path) == set()


def test_a_build_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FaiFastError, match="wrote no file"):
        cache.artefact(tmp_path / "a", {}, lambda path: None)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), float("nan")])
def test_dependencies_and_info_must_be_json(tmp_path, value):
    with pytest.raises((TypeError, ValueError), match="depends: got something that is not JSON"):
        cache.artefact(tmp_path / "a", {"x": value}, Build())
    with pytest.raises((TypeError, ValueError), match="what build returned: got something that is not JSON"):
        cache.artefact(tmp_path / "a", {}, Build(info={"x": value}))
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FaiFastError, match=r"cannot write to .*file.*FAI_FAST_CACHE"):
        cache.artefact(tmp_path / "file" / "a", {}, Build())


def test_a_loop_of_links_is_a_clear_error(tmp_path):
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    with pytest.raises(FaiFastError, match=r"cannot write to .*one.*FAI_FAST_CACHE"):
        cache.artefact(tmp_path / "one" / "models" / "a", {}, Build())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_clear_error_but_what_is_there_is_used(kept):
    for path in kept.parent.iterdir():
        path.chmod(0o400)
    kept.parent.chmod(0o500)
    try:
        assert not cache.artefact(kept, DEPENDS, Build()).built
        with pytest.raises(
            FaiFastError, match=rf"cannot write to .*{os.strerror(errno.EACCES)}.*FAI_FAST_CACHE"
        ):
            cache.artefact(kept.parent / "other", {}, Build())
    finally:
        kept.parent.chmod(0o700)


def test_a_full_disk_is_a_clear_error(tmp_path):
    script = f"""
        import resource, signal
        from fai_fast import cache
        from fai_fast.errors import FaiFastError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        def build(path):
            path.write_bytes(bytes(2000))
        try:
            cache.artefact({str(tmp_path / "a")!r}, {{}}, build)
        except FaiFastError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert f"no space left for {tmp_path}" in done.stdout
    assert names(tmp_path) == set()


def test_an_error_of_the_build_about_its_own_files_stays_what_it_is(tmp_path):
    def build(path):
        raise PermissionError(13, "Permission denied", "/elsewhere/weights.pth")

    with pytest.raises(PermissionError):
        cache.artefact(tmp_path / "a", {}, build)


def test_two_processes_build_once(tmp_path):
    first = start_builder(tmp_path)
    wait_for((tmp_path / "building").exists, "the first build")
    second = start_builder(tmp_path)
    assert second.stderr is not None
    waiting = second.stderr.readline()
    (tmp_path / "finish").touch()
    assert [first.communicate()[0].strip(), second.communicate()[0].strip()] == ["True", "False"]
    assert waiting == f"waiting for another process that builds {tmp_path / 'slow.bin'}\n"
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert (tmp_path / "slow.bin").read_bytes() == b"whole"


def test_a_killed_builder_is_cleaned_up_after(tmp_path):
    killed = start_builder(tmp_path)
    wait_for((tmp_path / "building").exists, "the build")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    half = Path((tmp_path / "builds").read_text().strip())
    assert half.read_bytes() == b"half"

    def build(path):
        assert not half.exists()  # its space may be what is needed
        path.write_bytes(b"whole")

    assert cache.artefact(tmp_path / "slow.bin", {"a": 1}, build).built
    assert names(tmp_path) == {"builds", "building", "slow.bin", "slow.bin.json"}


def test_the_cache_folder_is_the_argument_or_the_environment_or_the_usual_place(tmp_path, monkeypatch):
    monkeypatch.setenv("FAI_FAST_CACHE", str(tmp_path / "b"))
    assert cache.cache_folder(tmp_path / "a") == tmp_path / "a"
    assert cache.cache_folder() == tmp_path / "b"
    monkeypatch.setenv("FAI_FAST_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache.cache_folder().name in ("fai_fast", "Cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache.cache_folder("~/d") == tmp_path / "d"
    for wrong in ("", 3, ["a"]):
        with pytest.raises(TypeError, match="cache_dir: got"):
            cache.cache_folder(wrong)


def test_what_is_kept_can_be_listed_and_removed(tmp_path):
    folder = tmp_path / "models" / "a"
    cache.artefact(folder / "graph.onnx", DEPENDS, Build("12345", info={"iou": 1.0}))
    cache.artefact(folder / "graph.blob", {}, Build("1"))
    part = tmp_path / "weights" / "b" / "weights.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"123")
    said = {"url": "u", "from": "u", "etag": None, "last_modified": None, "total": None}
    cache.record_path(part).write_text(json.dumps(said))
    (folder / "notes.txt").write_text("not ours")

    found = {item.path.name: item for item in cache.list_artefacts(tmp_path)}
    assert list(found) == ["graph.blob", "graph.onnx", "weights.pth.part"]
    assert found["graph.onnx"].depends == DEPENDS
    assert found["graph.onnx"].info == {"iou": 1.0}
    assert found["graph.onnx"].size == 5 + cache.record_path(folder / "graph.onnx").stat().st_size
    assert found["graph.onnx"].created.endswith("+00:00")
    assert [found[name].complete for name in found] == [True, True, False]

    freed = sum(cache.remove(item.path) for item in found.values())
    assert freed == sum(item.size for item in found.values())
    assert names(folder) == {"notes.txt"}
    assert names(part.parent) == set()
    assert cache.list_artefacts(tmp_path) == []
    assert cache.remove(folder / "graph.onnx") == 0
    assert cache.remove(tmp_path / "nowhere" / "graph.onnx") == 0
    assert cache.list_artefacts(tmp_path / "nowhere") == []


# What is remembered of files that are not the cache's own


@pytest.fixture
def hashed(monkeypatch):
    """Every file that was read to be hashed."""
    paths = []
    sha256_of = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: (paths.append(path), sha256_of(path))[1])
    return paths


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """A file that has not been changed for longer than any file system's clock takes to tick."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"first content")
    later(monkeypatch)
    return path


def later(monkeypatch) -> None:
    """As if a minute had passed."""
    now = time.time_ns
    monkeypatch.setattr(cache.time, "time_ns", lambda: now() + 60_000_000_000)


def remembered(path: Path) -> str:
    return cache.remembered_sha256(path, path.parent / "cache")


def test_a_hash_is_remembered_while_nobody_touches_the_file(checkpoint, hashed):
    first = remembered(checkpoint)
    assert remembered(checkpoint) == first == hashlib.sha256(b"first content").hexdigest()
    assert hashed == [checkpoint]


def test_a_file_with_a_restored_modification_time_is_hashed_again(checkpoint, hashed):
    remembered(checkpoint)
    before = checkpoint.stat()
    time.sleep(0.05)  # longer than a tick of the clock that the inode's time of change is taken from
    with checkpoint.open("r+b") as file:
        file.write(b"other")
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = checkpoint.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert remembered(checkpoint) == hashlib.sha256(b"other content").hexdigest()
    assert len(hashed) == 2


def test_another_file_in_its_place_is_hashed_again(checkpoint, hashed):
    first = remembered(checkpoint)
    before = checkpoint.stat()
    other = checkpoint.with_name("other")
    other.write_bytes(b"other content")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, checkpoint)
    assert remembered(checkpoint) == hashlib.sha256(b"other content").hexdigest() != first
    assert len(hashed) == 2


@pytest.mark.parametrize("field", ["path", "device", "inode", "size", "mtime_ns", "ctime_ns"])
def test_every_sign_of_a_change_counts_by_itself(checkpoint, hashed, field):
    first = remembered(checkpoint)
    [kept] = (checkpoint.parent / "cache" / "hashes").iterdir()
    record = json.loads(kept.read_text())
    record["depends"][field] = "x" if field == "path" else record["depends"][field] + 1
    kept.write_text(json.dumps(record | {"sha256": "0" * 64}))
    assert remembered(checkpoint) == first
    assert len(hashed) == 2
    remembered(checkpoint)
    assert len(hashed) == 2


def test_the_hash_of_a_file_that_was_just_changed_is_not_kept(tmp_path, monkeypatch, hashed):
    """Another change in the same tick of the clock, with the same size, would leave no sign."""
    path = tmp_path / "new"
    path.write_bytes(b"first content")
    status = path.stat()
    newest = max(status.st_mtime_ns, status.st_ctime_ns)
    monkeypatch.setattr(cache.time, "time_ns", lambda: newest + 1_999_999_999)
    remembered(path)
    remembered(path)
    assert len(hashed) == 2
    monkeypatch.setattr(cache.time, "time_ns", lambda: newest + 2_000_000_001)
    remembered(path)
    remembered(path)
    assert len(hashed) == 3


def test_the_hash_of_a_file_that_changes_meanwhile_is_not_kept(checkpoint, monkeypatch):
    sha256_of = cache.sha256_of

    def slowly(path):
        found = sha256_of(path)
        path.write_bytes(b"other content")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(cache, "sha256_of", slowly)
        remembered(checkpoint)
    assert remembered(checkpoint) == hashlib.sha256(b"other content").hexdigest()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"depends": 1}'])
def test_a_damaged_record_of_a_hash_is_made_again(checkpoint, hashed, content):
    first = remembered(checkpoint)
    [kept] = (checkpoint.parent / "cache" / "hashes").iterdir()
    kept.write_bytes(content)
    assert remembered(checkpoint) == remembered(checkpoint) == first
    assert len(hashed) == 2


def test_a_cache_that_takes_nothing_is_no_reason_to_fail(checkpoint, hashed):
    (checkpoint.parent / "cache").write_bytes(b"no folder")
    assert remembered(checkpoint) == remembered(checkpoint)
    assert len(hashed) == 2


def test_remembered_hashes_can_be_forgotten(checkpoint, hashed):
    assert remembered(checkpoint) == remembered(checkpoint)
    cache.forget_hashes(checkpoint.parent / "cache")
    assert len(hashed) == 1
    remembered(checkpoint)
    assert len(hashed) == 2


def test_what_is_left_of_a_record_goes_when_the_file_is_built_again(tmp_path, monkeypatch):
    """A process that was killed while it wrote a record leaves a part of it beside the file."""
    path = tmp_path / "a.bin"
    cache.artefact(path, DEPENDS, Build())
    left = []
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", lambda source, target: left.append(Path(source)))
        cache.Record.of(path, DEPENDS, {}).write(cache.record_path(path))
    left[0].write_text("{")
    cache.record_path(path).unlink()
    assert cache.artefact(path, DEPENDS, Build()).built
    assert not left[0].exists()
