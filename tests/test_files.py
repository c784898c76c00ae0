import errno
import os
from pathlib import Path

import pytest

from unbraid import files
from unbraid.files import replace_text, write_atomically, write_lines


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def writer(**files):
    def write(folder):
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def test_a_new_folder_appears_whole(tmp_path):
    def write(folder):
        writer(a="1", deep__b="2")(folder)
        assert not (tmp_path / "deep" / "new").exists()

    write_atomically(tmp_path / "deep" / "new", write)
    assert contents(tmp_path) == {"deep/new/a": "1", "deep/new/deep/b": "2"}


def test_files_of_the_same_name_are_replaced_and_others_stay(tmp_path):
    writer(a="old", notes="mine", deep__b="old")(tmp_path)
    write_atomically(tmp_path, writer(a="new", c="new", deep__b="new", other__d="new"))
    assert contents(tmp_path) == {"a": "new", "notes": "mine", "c": "new", "deep/b": "new", "other/d": "new"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_on_the_way_leaves_what_was_there(tmp_path, exists):
    folder = tmp_path / "folder"
    if exists:
        write_atomically(folder, writer(a="old", b="old"))

    def write(partial):
        writer(a="new")(partial)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(folder, write)
    assert contents(tmp_path) == ({"folder/a": "old", "folder/b": "old"} if exists else {})
    assert not [path for path in tmp_path.iterdir() if path != folder]


def test_what_a_kill_left_is_not_mixed_in(tmp_path):
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "stale").write_text("half")
    write_atomically(tmp_path / "folder", writer(a="1"))
    assert contents(tmp_path) == {"folder/a": "1"}


def test_a_relative_folder_and_one_behind_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("plain", writer(a="1"))
    Path("link").symlink_to("plain")
    write_atomically("link", writer(a="2"))
    assert contents(tmp_path / "plain") == {"a": "2"}
    assert (tmp_path / "link").is_symlink()


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    events = []
    rename = Path.rename
    monkeypatch.setattr(files, "sync", lambda path: events.append(path.relative_to(tmp_path)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (events.append("rename"), rename(path, to)))
    write_atomically(tmp_path / "folder", writer(a="1", deep__b="2"))
    partial = Path(".folder.partial")
    assert set(events[:4]) == {partial, partial / "a", partial / "deep", partial / "deep" / "b"}
    assert events[4:] == ["rename", Path()]


def test_a_text_file_is_replaced_or_left(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    replace_text(path, "old")

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            replace_text(path, "new")
    assert contents(tmp_path) == {"a.json": "old"}
    replace_text(path, "né")
    assert contents(tmp_path) == {"a.json": "né"}


def test_lines_appear_when_the_last_is_written_and_stay_beside_it_if_none_comes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def lines():
        yield "new"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_lines(path, lines())
    assert contents(tmp_path) == {"a.txt": "old", ".a.txt.partial": "new\n"}
    write_lines(path, ["né", ""])
    assert contents(tmp_path) == {"a.txt": "né\n\n"}


def test_lines_go_where_a_link_points_and_into_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    write_lines(tmp_path / "link", ["new"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new\n"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_lines(tmp_path / "pipe", ["new"])
    assert os.read(reader, 99) == b"new\n"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
