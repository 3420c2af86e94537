"""Which files are videos, which stream plays, and lists of videos as others write them."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from data.decode import SampleError
from data.faults import Faults
from errors import UserError
from tasks.video.files import find_videos
from tests.test_video_data import (
    decode_all,
    is_one_sentence,
    labels_by_name,
    load,
    make_folder,
    make_video,
    opened,
    reader_of,
)

THREADS = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 18 else {}


def refused(dataset: str, folder: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(dataset, folder, **options)
    assert is_one_sentence(str(caught.value)), str(caught.value)
    return str(caught.value)


def save_picture(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), (shade, shade, shade)).save(path)


def save_gif(path: Path, frames: int, first: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.new("RGB", (48, 32), (first + 20 * n, 0, 200)) for n in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)


def found(folder: Path) -> list[str]:
    faults = Faults()
    files = find_videos(folder, faults).files
    assert not faults.found
    return [path.relative_to(folder).as_posix() for path in files]


def test_pictures_beside_or_above_clips_are_no_videos(tmp_path):
    for name in ("one/clip.mp4", "two/inner/clip.mp4", "top.mp4"):
        make_video(tmp_path / name, frames=2)
    for name in ("one/thumb.jpg", "two/poster.png", "two/inner/x.webp", "cover.jpg"):
        save_picture(tmp_path / name)
    for number in range(3):
        save_picture(tmp_path / f"frames/{number}.jpg")
    assert found(tmp_path) == ["frames", "one/clip.mp4", "top.mp4", "two/inner/clip.mp4"]
    left_out = find_videos(tmp_path, Faults()).left_out
    assert [path.name for path in left_out] == ["cover.jpg", "thumb.jpg", "x.webp", "poster.png"]


def test_folders_of_clips_and_frames_are_refused(tmp_path):
    save_gif(tmp_path / "walk/0.gif", 1)
    save_gif(tmp_path / "walk/1.gif", 4)
    faults = Faults()
    assert [path.name for path in find_videos(tmp_path, faults).files] == ["1.gif"]
    (fault,) = faults.found
    assert "walk holds GIFs that move, such as 1.gif, and 0.gif" in fault.sentence
    assert is_one_sentence(fault.sentence)


def test_gifs_that_move_are_clips_and_others_frames(tmp_path):
    for number in range(3):
        save_gif(tmp_path / f"clips/{number}.gif", 4, first=10 * number)
        save_gif(tmp_path / f"frames/{number}.gif", 1, first=10 * number)
        save_gif(tmp_path / f"{number}.gif", 4)  # right in a class's folder
    clips = [f"clips/{n}.gif" for n in range(3)]
    assert found(tmp_path) == [*(f"{n}.gif" for n in range(3)), *clips, "frames"]
    with opened(tmp_path / "clips/1.gif") as video:
        assert len(video.times) == 4
        frames = video.read(np.arange(4))
        assert abs(frames[:, 0, 9, 9].int() - torch.tensor([10, 30, 50, 70])).max() <= 2
        assert torch.equal(video.read(np.array([2])), frames[2:3])


def test_animations_that_no_decoder_reads_are_refused(tmp_path):
    pictures = [Image.new("RGB", (48, 32), (20 * n, 0, 200)) for n in range(3)]
    (tmp_path / "clip").mkdir()
    pictures[0].save(tmp_path / "clip/a.webp", save_all=True, append_images=pictures[1:])
    faults = Faults()
    find_videos(tmp_path, faults)
    assert "a.webp is an animation" in faults.found[0].sentence


def test_folder_in_any_case_with_left_out_files_and_held_out_videos(tmp_path):
    make_folder(tmp_path, count=1)
    for split in ("train", "val"):
        (tmp_path / split).rename(tmp_path / split.capitalize())
    save_picture(tmp_path / "Train/run/thumb.jpg")
    data = load("folder", tmp_path)
    assert (len(data.train), len(data.val)) == (2, 2)
    (note,) = data.notes
    assert "1 file is left out" in note and "thumb.jpg" in note and is_one_sentence(note)
    whole = tmp_path / "whole"
    for kind in ("run", "jump"):
        for number in range(8):
            save_gif(whole / kind / f"{number}.gif", 2)
    assert "--val_share" in refused("folder", whole)
    data = load("folder", whole, val_share=0.3)
    assert len(data.train) + len(data.val) == 16 and len(data.val) > 1
    assert data.classes == ["jump", "run"]


def two_streams(path: Path, marked: bool) -> Path:
    """A file whose first stream is a cover of one picture, and whose second one plays."""
    disposition = getattr(av.stream.Disposition, "attached_pic", None)
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        if marked:
            try:
                cover.disposition = disposition
            except TypeError:
                pytest.skip("this PyAV can't mark a cover")
        film = container.add_stream("mpeg4", rate=25)
        film.width, film.height, film.pix_fmt = 48, 32, "yuv420p"
        for stream, count, size in ((cover, 1, (64, 64)), (film, 12, (32, 48))):
            for number in range(count):
                pixels = np.full((*size, 3), 20 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt, **THREADS)
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_the_stream_that_plays_is_read(tmp_path, kind, marked):
    with opened(two_streams(tmp_path / f"v.{kind}", marked)) as video:
        assert len(video.times) == 12
        frames = video.read(np.array([1, 6, 11]))
        assert frames.shape == (3, 3, 32, 48)
        shades = frames.float().mean((1, 2, 3))
        assert (shades - torch.tensor([20.0, 120, 220])).abs().max() < 6


def test_a_header_that_claims_billions_of_frames_is_one_sentence(tmp_path):
    path = make_video(tmp_path / "v.avi", frames=12)
    content = bytearray(path.read_bytes())
    claimed = struct.pack("<I", 2**31 - 1)
    main, stream = content.index(b"avih"), content.index(b"strh")
    content[main + 24 : main + 28] = claimed  # dwTotalFrames
    content[stream + 40 : stream + 44] = claimed  # dwLength
    path.write_bytes(content)
    with pytest.raises(SampleError, match=r"12 of 2147483647 frames") as caught:
        opened(path)
    assert is_one_sentence(str(caught.value))


def test_pipes_are_not_waited_for(tmp_path):
    make_folder(tmp_path, count=1)
    os.mkfifo(tmp_path / "train/run/pipe.mp4")
    assert "pipe.mp4 is no regular file" in refused("folder", tmp_path)
    (tmp_path / "train.csv").write_text("label,file\nx,train/run/0.mp4\ny,train/run/pipe.mp4\n")
    (tmp_path / "val.csv").write_text("label,file\nx,train/run/0.mp4\n")
    assert "no regular file" in refused("kinetics", tmp_path)
    with pytest.raises(SampleError, match="no regular file"):
        opened(tmp_path / "train/run/pipe.mp4")


def test_linked_folders_are_followed_once(tmp_path):
    make_folder(tmp_path / "real", count=1)
    linked = tmp_path / "linked"
    for split in ("train", "val"):
        (linked / split).mkdir(parents=True)
        for kind in ("run", "jump"):
            (linked / split / kind).symlink_to(tmp_path / "real" / split / kind)
    for name in ("a", "b"):
        (tmp_path / "real/train/run" / name).symlink_to(".")
    data = load("folder", linked)
    assert (len(data.train), len(data.val)) == (2, 2)


def test_videos_whose_names_are_no_utf8_are_named(tmp_path):
    make_folder(tmp_path, count=1)
    odd = os.fsencode(tmp_path / "train/run") + b"/caf\xe9.mp4"
    os.rename(tmp_path / "train/run/0.mp4", odd)
    assert r"caf\xe9.mp4" in refused("folder", tmp_path)


# Lists


def make_clips(root: Path, *names: str) -> None:
    for name in names:
        make_video(root / name, frames=2)


@pytest.mark.parametrize("depth", ["", "hmdb51_org/"])
def test_hmdb51(tmp_path, depth):
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    for kind in ("wave", "brush_hair"):
        names = [f"a film {kind} {number}.avi" for number in range(3)]
        make_clips(tmp_path / depth / kind, *names)
        lines = [f"{name} {use} " for name, use in zip(names, "120", strict=True)]
        (lists / f"{kind}_test_split2.txt").write_text("\n".join(lines))
    data = load("hmdb51", tmp_path, split=2)
    assert data.classes == ["brush_hair", "wave"] and (len(data.train), len(data.val)) == (2, 2)
    assert labels_by_name(data, data.val)["a film wave 1"] == "wave"
    assert "official test list" in data.notes[0] and is_one_sentence(data.notes[0])
    assert "_test_split1.txt" in refused("hmdb51", tmp_path, split=1)
    (lists / "wave_test_split2.txt").write_text("a.avi 1\na film wave 0.avi 5\n")
    assert "a.avi is not below" in refused("hmdb51", tmp_path, split=2)


@pytest.mark.parametrize(
    ("line", "labels"),
    [
        ("{} {}", "numbers"),
        ("videos/{} {}.0", "numbers"),
        ("/home/me/videos/{},{}", "names"),
        ("C:\\videos\\{}\t{}", "names"),
    ],
)
def test_lists_of_paths_and_labels(tmp_path, line, labels):
    make_clips(tmp_path / "videos", "a.mp4", "b c.mp4", "d.mp4")
    pairs = [("a.mp4", 0), ("b c.mp4", 1), ("d.mp4", 1)]
    names = ["walk", "run"]
    lines = [line.format(path, names[n] if labels == "names" else n) for path, n in pairs]
    (tmp_path / "x_train_list_videos.txt").write_text("\n".join(lines[:2]) + "\n\n")
    (tmp_path / "x_val_list_videos.txt").write_text(lines[2])
    data = load("list", tmp_path)
    if labels == "numbers":
        assert data.classes == ["class 0", "class 1"] and "2 classes" in data.notes[0]
        (tmp_path / "classes.txt").write_text("walk\nrun\n")
        data = load("list", tmp_path)
        assert data.classes == names
        assert data.notes == ("val: 1 of 2 classes have no video, and count in no mean: walk.",)
    assert labels_by_name(data, data.train) == {"a": "walk", "b c": "run"}
    assert labels_by_name(data, data.val) == {"d": "run"}
    if labels == "numbers":
        (tmp_path / "classes.txt").write_text("1 walk\n2 run\n")
        assert "have the class 0" in refused("list", tmp_path)
        lines = [line.format(path, n + 1) for path, n in pairs]  # numbers as the names have them
        (tmp_path / "x_train_list_videos.txt").write_text("\n".join(lines[:2]))
        (tmp_path / "x_val_list_videos.txt").write_text(lines[2])
        data = load("list", tmp_path)
        assert data.classes == names
        assert labels_by_name(data, data.train) == {"a": "walk", "b c": "run"}


def test_lists_of_folders_of_frames_with_their_numbers(tmp_path):
    for name in ("one", "two"):
        for number in range(3):
            save_picture(tmp_path / f"rawframes/{name}/{number}.jpg", 20 * number)
    (tmp_path / "train.txt").write_text("one 3 0\ntwo 3 1\n")
    (tmp_path / "val.txt").write_text("two 3 1\n")
    data = load("list", tmp_path)
    with reader_of(data).open(1) as sample:
        assert len(sample.times) == 3 and sample.label == 1


def test_lists_that_cannot_be_used(tmp_path):
    make_clips(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "val.txt").write_text("a.mp4 0\n")
    for text, words in (
        ("a.mp4\n", "Line 1"),
        ("gone.mp4 0\n", "gone.mp4, which is not there"),
        ("\n", "lists no video"),
        ("a.mp4 0\nb.mp4 5000\n", "number them from 0"),
        ("a.mp4 0\nb.mp4 1\n./a.mp4 1\n", "the label 1, and an earlier one gives it 0"),
        ("b.mp4 1\n", "the class class 0, but no training video"),
    ):
        (tmp_path / "train.txt").write_text(text)
        assert words in refused("list", tmp_path)
    (tmp_path / "train.txt").write_text("a.mp4 walk\nb.mp4 run\na.mp4 run\n")
    assert "the label run, and an earlier one gives it walk" in refused("list", tmp_path)
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "val.txt").rename(tmp_path / "test.txt")
    assert any("test is used to validate" in note for note in load("list", tmp_path).notes)
    (tmp_path / "test.txt").unlink()
    assert "--val_share" in refused("list", tmp_path)


def test_tables_written_on_another_machine_and_held_out(tmp_path):
    make_clips(tmp_path, *(f"clips/{number}.mp4" for number in range(8)))
    lines = [f"{'xy'[number % 2]},C:\\data\\clips\\{number}.mp4" for number in range(8)]
    (tmp_path / "train.csv").write_text("\n".join(["label,file", *lines]))
    assert "--val_share" in refused("kinetics", tmp_path)
    data = load("kinetics", tmp_path, val_share=0.4)
    assert len(data.train) + len(data.val) == 8
    stems = {Path(row["video"]["path"]).stem for rows in (data.train, data.val) for row in rows}
    assert stems == {str(number) for number in range(8)}


def test_a_decoded_video_is_that_of_its_only_stream(tmp_path):
    path = make_video(tmp_path / "v.mp4", frames=9)
    with opened(path) as video:
        assert torch.equal(video.read(np.arange(9)), decode_all(path))
