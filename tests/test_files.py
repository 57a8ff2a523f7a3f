"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from fai_fast._files import replacing


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_after_an_error_all_is_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("bits", [0o600, 0o640, 0o755])
def test_a_file_that_is_there_keeps_its_mode(tmp_path, bits):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(bits)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), mode(path)) == ("new", bits)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
class TestLinks:
    def test_the_content_of_the_target_is_replaced_and_the_link_stays(self, tmp_path):
        (tmp_path / "store").mkdir()
        target, link = tmp_path / "store" / "data", tmp_path / "a.txt"
        target.write_text("old")
        target.chmod(0o600)
        link.symlink_to(Path("store") / "data")
        with replacing(link) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("new")
        assert link.is_symlink()
        assert (target.read_text(), mode(target)) == ("new", 0o600)
        assert list(target.parent.iterdir()) == [target]

    def test_a_link_to_nothing_makes_what_it_points_to(self, tmp_path):
        link = tmp_path / "a.txt"
        link.symlink_to("b.txt")
        with replacing(link) as temporary:
            temporary.write_text("new")
        assert link.is_symlink()
        assert (tmp_path / "b.txt").read_text() == "new"

    def test_a_link_into_a_folder_that_is_not_there_is_an_error(self, tmp_path):
        link = tmp_path / "a.txt"
        link.symlink_to("none/b.txt")
        with pytest.raises(FileNotFoundError, match=r"no such folder: .*none"), replacing(link):
            pass

    def test_a_link_to_itself_is_an_error(self, tmp_path):
        link = tmp_path / "a.txt"
        link.symlink_to("a.txt")
        with pytest.raises(OSError, match=r"a\.txt"), replacing(link):
            pass
        assert link.is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_what_is_no_regular_file_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    came = []
    reader = threading.Thread(target=lambda: came.append(path.read_text()), daemon=True)
    reader.start()
    with replacing(path) as temporary:
        temporary.write_text("new")
    reader.join(30)
    assert came == ["new"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="no such folder"), replacing(tmp_path / "none" / "a"):
        pass
