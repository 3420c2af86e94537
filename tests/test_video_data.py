"""Video data: exact frames, clips, every source's layout, determinism and bad files."""

import csv
import pickle
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import datasets
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from benchmarks import video_decoding
from data.decode import SampleError
from data.stream import SampleKey
from errors import UserError
from tasks.video import synthetic
from tasks.video.check import survey
from tasks.video.clips import ClipOptions, clip_numbers, is_short, segment
from tasks.video.dataset import EvalDataset, Reader, TrainDataset, collate
from tasks.video.decoding.open import open_video, torchcodec_decoder
from tasks.video.decoding.pyav import ONE_THREAD, PyavVideo
from tasks.video.options import VideoOptions
from tasks.video.sources import VideoData, load_data
from tasks.video.transforms import cut_windows, train_transform

X264 = "libx264" in av.codecs_available
NO_JITTER = (0.0, 0.0, 0.0, 0.0)
WINDOW = partial(cut_windows, crop_size=(32, 32), count=1)
WINDOWS = partial(cut_windows, crop_size=(32, 32), count=3)


def load(dataset: str = "synthetic", data_dir: Path | None = None, **options) -> VideoData:
    data_dir = data_dir and str(data_dir)
    return load_data(VideoOptions(dataset=dataset, data_dir=data_dir, **options))


def reader_of(data: VideoData, split: str = "train", decoder: str = "auto") -> Reader:
    return Reader(getattr(data, split), data.open, decoder)


def train_data(reader: Reader, frames: int, stride: int = 1) -> TrainDataset:
    """Clips of 32x32 pixels, unchanged if the video is of that size."""
    keep = train_transform((32, 32), None, 0, NO_JITTER)
    return TrainDataset(reader, ClipOptions(frames, stride), (32, 32), keep, seed=0)


def make_video(
    path: Path,
    frames: int = 30,
    codec: str = "mpeg4",
    size: tuple[int, int] = (32, 48),
    stamps: list[int] | None = None,
    rate: int = 25,
    shade: int = 0,
    **options: str,
) -> Path:
    """A video of (height, width), each frame of it different, with a key frame every 8 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "8", **options})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if stamps:
            stream.codec_context.time_base = Fraction(1, 30)
        for number in range(frames):
            picture = np.full((*size, 3), shade, np.uint8)
            picture[:, :, 0] = 8 * number % 256
            picture[number % size[0], :, 1] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", **ONE_THREAD)
            if stamps:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path: Path) -> torch.Tensor:
    """Every frame from the first on, (T, 3, H, W)."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = container.decode(video=0)
        frames = [frame.to_ndarray(format="rgb24", **ONE_THREAD) for frame in decoded]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def opened(path: Path, decoder: str = "auto"):
    return open_video({"path": str(path), "bytes": None}, path.name, decoder)


def is_one_sentence(message: str) -> bool:
    body = message.removesuffix(".")
    return message.endswith(".") and "\n" not in message and ". " not in body and len(message) < 600


# Exact frames

IRREGULAR = np.cumsum([100, *([1, 2, 1, 3] * 8)])[:30].tolist()
FILES = [
    ("plain.avi", {}),
    ("b_frames.avi", {"bf": "2"}),  # no time stamps, and packets in another order than frames
    ("b_frames.mp4", {"bf": "2"}),
    ("scanned.mkv", {"bf": "2"}),  # no frame count in the header
    ("stream.ts", {"codec": "mpeg2video", "bf": "2"}),
    ("stamps_now_and_then.mpg", {"codec": "mpeg2video", "bf": "2"}),
    ("irregular.mkv", {"stamps": IRREGULAR}),
]
if X264:
    open_gop = {"codec": "libx264", "x264-params": "open-gop=1:keyint=8:bframes=3"}
    FILES += [
        ("open_gop.mp4", open_gop),
        ("irregular.mp4", {"codec": "libx264", "stamps": IRREGULAR}),
        ("no_stamps.h264", {"codec": "libx264"}),
        ("intra_refresh.mp4", {"codec": "libx264", "x264-params": "intra-refresh=1:keyint=8"}),
    ]


@pytest.mark.parametrize(("name", "options"), FILES)
def test_every_clip_is_what_decoding_everything_gives(tmp_path, name, options):
    path = make_video(tmp_path / name, **options)
    whole = decode_all(path)
    assert len(whole) == 30
    with opened(path) as video:
        assert len(video.times) == 30 and (np.diff(video.times) > 0).all()
        for first in range(0, 26, 3):
            assert torch.equal(video.read(np.arange(first, first + 5)), whole[first : first + 5])
        scattered = np.array([21, 3, 3, 29])
        assert torch.equal(video.read(scattered), whole[scattered])


def test_seeking_decodes_a_part_only(tmp_path, monkeypatch):
    path = make_video(tmp_path / "long.mp4", frames=120)
    with opened(path) as video:
        seen = []
        number = video._number
        monkeypatch.setattr(video, "_number", lambda frame: seen.append(1) or number(frame))
        video.read(np.arange(100, 104))
    assert len(seen) < 16


def test_time_stamps(tmp_path):
    with opened(make_video(tmp_path / "v.mkv", stamps=IRREGULAR)) as video:
        found = video.times - video.times[0]
    assert np.allclose(found, (np.array(IRREGULAR) - 100) / 30, atol=2e-3)
    with opened(make_video(tmp_path / "v.mp4", rate=10)) as video:
        assert np.allclose(video.times, np.arange(30) / 10)


def test_bytes_folder_of_frames_and_path_agree(tmp_path):
    path = make_video(tmp_path / "v.avi")
    whole = decode_all(path)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(whole):
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
        picture.save(tmp_path / f"frames/frame{number}.png")  # frame10 follows frame9
    numbers = np.array([9, 10, 11, 2])
    with open_video({"path": None, "bytes": path.read_bytes()}, "bytes") as video:
        assert torch.equal(video.read(numbers), whole[numbers])
    with opened(tmp_path / "frames") as video:
        assert len(video.times) == 30
        assert torch.equal(video.read(numbers), whole[numbers])


def test_frames_are_resized_antialiased_to_the_short_side(tmp_path):
    path = make_video(tmp_path / "v.mp4", size=(64, 96))
    with opened(path) as video:
        small, whole = video.read(np.arange(3), short_side=16), video.read(np.arange(3))
    assert small.shape == (3, 3, 16, 24)
    means = whole.float().reshape(3, 3, 16, 4, 24, 4).mean((3, 5))
    assert (small.float() - means).abs().mean() < 4  # a nearest pixel would be far off


def test_rotated_video_is_upright(tmp_path):
    source, path = make_video(tmp_path / "v.mp4"), tmp_path / "rotated.mp4"
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV can't write the rotation")
        stream.set_display_rotation(90)
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    with opened(path) as video:
        upright = video.read(np.array([4]))[0]
    assert torch.equal(upright, torch.rot90(decode_all(source)[4], 1, (1, 2)))


def test_what_an_editor_cut_away_is_no_frame(tmp_path):
    source, path = make_video(tmp_path / "v.mp4"), tmp_path / "cut.mp4"
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        tick = 1 / (25 * read.streams.video[0].time_base)
        for packet in read.demux(video=0):
            if packet.dts is not None and packet.pts >= 8 * tick:
                packet.pts -= int(11 * tick)  # frames 8, 9 and 10 now are before the beginning
                packet.dts -= int(11 * tick)
                packet.stream = stream
                write.mux(packet)
    with opened(path) as video:
        assert len(video.times) == 19
        assert torch.equal(video.read(np.arange(5, 19)), decode_all(source)[16:])


def test_memory_of_a_worker_stays_flat(tmp_path):
    """Over a thousand clips: what a video holds on to for each of them would show."""
    for kind in "ab":
        make_video(tmp_path / kind / "v.mp4", size=(120, 160), frames=24)
    table = "label,file\n" + "a,a/v.mp4\nb,b/v.mp4\n" * 700
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text(table)
    dataset = train_data(reader_of(load("kinetics", tmp_path)), 2)
    others = psutil.Process().children()
    keys = [SampleKey(0, index, index) for index in range(1400)]
    batches = iter(DataLoader(dataset, sampler=keys, batch_size=10, num_workers=1))
    (worker,) = set(psutil.Process().children()) - set(others)

    def read(count: int) -> int:
        for _ in range(count):
            next(batches)
        return worker.memory_info().rss

    before = read(30)
    assert read(105) - before < 5e6  # 12e6 with containers that nobody closes


def test_a_video_is_closed(tmp_path):
    with opened(make_video(tmp_path / "v.mp4")) as video:
        container = video.container
        video.read(np.arange(3))
    with pytest.raises(AssertionError, match=r"[Nn]ot open|closed"):
        container.seek(0)


def test_torchcodec_gives_the_same_frames_or_a_sentence(tmp_path):
    path = make_video(tmp_path / "v.mp4", bf="2")
    try:
        torchcodec_decoder()
    except UserError as error:
        assert is_one_sentence(str(error)) and "pyav" in str(error)
        with pytest.raises(UserError, match="torchcodec"):
            reader_of(load(), decoder="torchcodec")
        pytest.skip("torchcodec can't be loaded here")
    with opened(path, "torchcodec") as video:
        assert torch.equal(video.read(np.arange(9, 14)), decode_all(path)[9:14])


def test_the_benchmark_leaves_broken_files_out(tmp_path, capsys):
    good, broken = (make_video(tmp_path / f"{name}.mp4") for name in ("good", "broken"))
    broken.write_bytes(b"no video")
    video_decoding.measure({".mp4": [broken, good]}, ClipOptions(4, 1), rounds=2)
    said = capsys.readouterr().out
    assert said.count(f"{broken} is left out") == 2 and "2 of 2" in said


# Clips


def test_stride_clips():
    times = np.arange(20) / 25
    options = ClipOptions(frames=4, stride=3)
    assert clip_numbers(times, options, 0).tolist() == [0, 3, 6, 9]
    assert clip_numbers(times, options, 1).tolist() == [10, 13, 16, 19]
    starts = {clip_numbers(times, options, p)[0] for p in np.linspace(0, 0.999, 500)}
    assert starts == set(range(11))
    assert not is_short(times, options) and is_short(times[:9], options)
    assert clip_numbers(times[:5], options, 0.7).tolist() == [0, 3, 1, 4]  # repeated


@pytest.mark.parametrize("rate", [10, 25, 29.97])
def test_fps_clips_last_equally_long_at_every_rate(rate):
    times = 7 + np.arange(int(4 * rate)) / rate
    options = ClipOptions(frames=8, fps=5)
    for position in (0, 0.3, 1):
        found = times[clip_numbers(times, options, position)]
        wanted = found[0] + np.arange(8) / 5
        assert (abs(found - wanted) < 1 / rate).all()
    assert clip_numbers(times, options, 0)[0] == 0
    assert not is_short(times, options) and is_short(times[: len(times) // 4], options)


def test_fps_clips_follow_the_stamps_not_the_count():
    times = np.array([0, 0.1, 0.2, 0.3, 1.0, 1.7, 1.8])
    assert clip_numbers(times, ClipOptions(frames=4, fps=2), 0).tolist() == [0, 3, 4, 4]
    short = clip_numbers(np.array([0, 0.1]), ClipOptions(frames=5, fps=10), 0)
    assert short.tolist() == [0, 1, 0, 1, 0]
    assert clip_numbers(np.array([3.0]), ClipOptions(frames=3, fps=9), 0.5).tolist() == [0, 0, 0]


def test_segments():
    times = 5 + np.arange(50) / 25
    assert segment(times, None, None) == (0, 50)
    assert segment(times, 0.4, 1.0) == (10, 25)
    first, stop = segment(times, 9.0, 10.0)
    assert first == stop


# Sources


def make_folder(root: Path, kinds=("run", "jump"), count: int = 2) -> Path:
    for split in ("train", "val"):
        for shade, kind in enumerate(kinds):
            for number in range(count):
                path = root / split / kind / f"{number}.mp4"
                make_video(path, frames=12 + number, shade=100 * shade)
    return root


def labels_by_name(data, rows) -> dict[str, str]:
    return {Path(row["video"]["path"]).stem: data.classes[row["label"]] for row in rows}


def test_folder_of_files_and_of_frames(tmp_path):
    make_folder(tmp_path)
    frames = tmp_path / "train/jump/clip"
    frames.mkdir()
    for number in range(3):
        Image.new("RGB", (48, 32)).save(frames / f"{number}.jpg")
    (tmp_path / "train/run/notes.txt").write_text("no video")
    data = load("folder", tmp_path)
    assert data.classes == ["jump", "run"] and (len(data.train), len(data.val)) == (5, 4)
    assert data.train.features["label"].names == data.classes
    assert [row["label"] for row in data.train] == [0, 0, 0, 1, 1]
    dataset = train_data(reader_of(data), 4)
    shapes = {dataset[SampleKey(0, i, i)]["video"].shape for i in range(5)}
    assert shapes == {(4, 3, 32, 32)}
    assert "clip" in {Path(dataset.name(i)).name for i in range(5)}


def test_folder_with_a_class_of_validation_alone(tmp_path):
    make_folder(tmp_path, count=1)
    make_video(tmp_path / "val/swim/0.mp4", frames=3)
    with pytest.raises(UserError, match="swim") as caught:
        load("folder", tmp_path)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("videos", ["", "UCF-101/"])
def test_ucf101(tmp_path, videos):
    names = [f"{kind}/v_{kind}_g0{i}_c01.avi" for kind in ("Yo", "Box") for i in (1, 2, 3)]
    for name in names:
        make_video(tmp_path / videos / name, frames=3)
    lists = tmp_path / ("ucfTrainTestlist" if videos else ".")
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text("1 Yo\n2 Box\n")
    (lists / "trainlist02.txt").write_text("".join(f"{n} {1 + ('Box' in n)}\n" for n in names[1:]))
    (lists / "testlist02.txt").write_text(f"{names[0]}\n")
    data = load("ucf101", tmp_path, split=2)
    assert data.classes == ["Yo", "Box"] and (len(data.train), len(data.val)) == (5, 1)
    assert [row["label"] for row in data.train] == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="trainlist01"):
        load("ucf101", tmp_path, split=1)
    (tmp_path / videos / names[2]).unlink()
    with pytest.raises(UserError, match="v_Yo_g03_c01") as caught:
        load("ucf101", tmp_path, split=2)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("file", "content", "fragment"),
    [
        ("classInd.txt", "Yo\n2 Box\n", "line Yo"),
        ("classInd.txt", "\n", "0 classes"),
        ("classInd.txt", "2 Yo\n1 Box\n", "number 2"),
        (
            "trainlist01.txt",
            "caf\xe9/v.avi 1\n",
            r"trainlist01\.txt can't be read \(it is not text",
        ),
        ("trainlist01.txt", "Yo/v.avi 2\n", "class 2"),
    ],
)
def test_bad_lists_of_ucf101(tmp_path, file, content, fragment):
    for kind in ("Yo", "Box"):
        make_video(tmp_path / kind / "v.avi", frames=2)
    for name, text in {
        "classInd.txt": "1 Yo\n2 Box\n",
        "trainlist01.txt": "Yo/v.avi 1\nBox/v.avi 2\n",
        "testlist01.txt": "Yo/v.avi\n",
    }.items():
        (tmp_path / name).write_text(content if name == file else text, encoding="latin-1")
    with pytest.raises(UserError, match=fragment) as caught:
        load("ucf101", tmp_path)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("kinds", [["run"], ["run", "jump"]])
def test_folder_of_one_class_or_of_an_empty_one(tmp_path, kinds):
    make_folder(tmp_path, ["run"], count=1)
    (tmp_path / "train" / kinds[-1]).mkdir(exist_ok=True)
    with pytest.raises(UserError, match="takes 2" if len(kinds) == 1 else "train/jump") as caught:
        load("folder", tmp_path)
    assert is_one_sentence(str(caught.value))


def test_test_data_that_validate_are_noted(tmp_path):
    make_folder(tmp_path, count=1)
    assert not load("folder", tmp_path).notes
    (tmp_path / "val").rename(tmp_path / "test")
    (note,) = load("folder", tmp_path).notes
    assert "test is used to validate" in note and is_one_sentence(note)
    make_video(tmp_path / "a.mp4", frames=2)
    table = "label,file\nx,a.mp4\ny,a.mp4\n"
    for name in ("train", "validate", "test"):
        (tmp_path / f"{name}.csv").write_text(table)
    (note,) = load("kinetics", tmp_path).notes  # Kinetics calls the list for validation validate
    assert note.startswith("1 of 1 validation files are training files too")
    (tmp_path / "validate.csv").unlink()
    assert "test is used to validate" in load("kinetics", tmp_path).notes[0]


def write_table(path: Path, header: str, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")


def test_kinetics(tmp_path):
    make_video(tmp_path / "train/tap dancing/abc_000010_000020.mp4", frames=10)
    make_video(tmp_path / "train/whole-1.mkv", frames=50)
    make_video(tmp_path / "val/-xy_000000_000010.mp4", frames=10)
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    write_table(
        tmp_path / "annotations/train.csv",
        header,
        '"tap dancing",abc,10,20,train,0',
        "yoga,whole-1,0.4,1.2,train,0",
        "yoga,gone,1,11,train,0",
    )
    write_table(tmp_path / "validate.csv", header)
    write_table(tmp_path / "val.csv", header, "yoga,-xy,0,10,val,0")
    data = load("kinetics", tmp_path)
    assert data.classes == ["tap dancing", "yoga"]
    assert labels_by_name(data, data.train) == {
        "abc_000010_000020": "tap dancing",
        "whole-1": "yoga",
    }
    assert "1 videos" in data.notes[0]
    assert data.notes[1:] == (
        "val: 1 of 2 classes have no video, and count in no mean: tap dancing.",
    )
    reader = reader_of(data)
    assert data.train[0]["start"] is None  # the file is the part itself
    with reader.open(1) as sample:
        assert (sample.first, sample.stop, sample.label, len(sample.times)) == (10, 30, 1, 20)
    part = decode_all(tmp_path / "train/whole-1.mkv")[10:30]
    clip = train_data(reader, 20)[SampleKey(0, 1, 0)]["video"]
    assert torch.equal(clip[:, :, 0, 0], part[:, :, 0, 0])


def test_simple_table(tmp_path):
    make_video(tmp_path / "clips/a.mp4")
    for name in ("train.csv", "val.csv"):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "file", "start", "end"])
            writer.writerows([["x, y", "clips/a.mp4", "0.2", ""], ["z", "clips/a.mp4", "", "0.4"]])
    data = load("kinetics", tmp_path)
    assert data.classes == ["x, y", "z"]
    assert [(row["start"], row["end"]) for row in data.val] == [(0.2, None), (None, 0.4)]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("name,file\n", "label,file"),
        ("label,file,start\nx,a.mp4,soon\n", "Line 2"),
        ("label,file\nx\n", "Line 2"),
        ("label,file\nx,none.mp4\n", "none.mp4"),
        ("label,youtube_id,time_start,time_end\nx,y,1,2\n", "no video"),
        (f"label,file\nx,a.mp4\nx,{'a' * 200_000}\n", "Line 3"),
        ("label,file\ncaf\xe9,a.mp4\n", r"train\.csv can't be read \(it is not text"),
        ("label,file\nx,a.mp4\n", "takes 2"),
    ],
)
def test_bad_tables(tmp_path, content, fragment):
    make_video(tmp_path / "a.mp4", frames=2)
    (tmp_path / "train.csv").write_text(content, encoding="latin-1")
    (tmp_path / "val.csv").write_text("label,file\nx,a.mp4\n")
    with pytest.raises(UserError, match=fragment) as caught:
        load("kinetics", tmp_path)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("video_column", ["film", "video"])
@pytest.mark.parametrize("label_column", ["kind", "label"])
@pytest.mark.parametrize("stored", ["bytes", "paths"])
def test_hub(tmp_path, stored, video_column, label_column):
    files = [make_video(tmp_path / f"saved/{i}.mp4", frames=6, shade=40 * i) for i in range(3)]
    if stored == "bytes":
        cells = [{"path": None, "bytes": file.read_bytes()} for file in files]
        feature = datasets.Video(decode=False)
        label = datasets.ClassLabel(names=["a", "b", "c"])
    else:
        cells, feature, label = [file.name for file in files], datasets.Value("string"), None
    features = {video_column: feature, label_column: label or datasets.Value("string")}
    columns = {video_column: cells, label_column: ["a", "b", "c"]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    splits = {"train": rows, "validation": rows.select([2])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    name = f"hub:{tmp_path / 'saved'}"
    data = load(name, video_column=video_column, label_column=label_column)
    assert data.classes == ["a", "b", "c"] and data.val[0]["label"] == 2
    dataset = EvalDataset(reader_of(data, "val"), ClipOptions(6, 1), 32, WINDOW)
    assert torch.equal(dataset[0]["video"][0, ..., 0], decode_all(files[2])[:, :, :, 8])
    if (video_column, label_column) != ("video", "label"):
        with pytest.raises(UserError, match=f"{video_column}, {label_column}") as caught:
            load(name)
        assert is_one_sentence(str(caught.value))
    if stored == "bytes":
        columns = {"video_column": video_column, "label_column": label_column}
        for wrong, reason in (
            ({"label_column": video_column}, rf"{video_column} of .* holds no labels"),
            ({"video_column": label_column}, rf"{label_column} of .* doesn't hold videos"),
        ):
            with pytest.raises(UserError, match=reason) as caught:
                load(name, **(columns | wrong))
            assert is_one_sentence(str(caught.value))


def test_hub_rows_without_video_or_label(tmp_path):
    make_video(tmp_path / "saved/v.mp4", frames=2)
    columns = {"video": ["v.mp4", None], "label": ["a", "b"]}
    splits = {name: datasets.Dataset.from_dict(columns) for name in ("train", "val")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    data = load(f"hub:{tmp_path / 'saved'}")
    with pytest.raises(SampleError, match="Video of sample 1 holds no video") as caught:
        train_data(reader_of(data), 2)[SampleKey(0, 1, 0)]
    assert is_one_sentence(str(caught.value))
    columns["label"] = ["a", None]
    for label in (datasets.Value("string"), datasets.ClassLabel(names=["a", "b"])):
        features = datasets.Features({"video": datasets.Value("string"), "label": label})
        rows = datasets.Dataset.from_dict(columns, features=features)
        rows.save_to_disk(str(tmp_path / "unlabelled"))
        with pytest.raises(UserError, match="label") as caught:
            load(f"hub:{tmp_path / 'unlabelled'}")
        assert is_one_sentence(str(caught.value))
    rows = datasets.Dataset.from_dict({"video": ["v.mp4"] * 4, "label": ["a", "b", None, "a"]})
    both = datasets.DatasetDict({"train": rows, "val": rows})
    both.save_to_disk(str(tmp_path / "partly"))
    data = load(f"hub:{tmp_path / 'partly'}", skip_unlabelled=True)
    assert data.train["label"][:] == [0, 1, 0] and "2 samples without a label" in data.notes[0]


def test_hub_split_without_rows(monkeypatch):
    rows = datasets.Dataset.from_dict({"video": ["a.mp4", "b.mp4"], "label": ["a", "b"]})
    splits = datasets.DatasetDict({"train": rows, "val": rows.select([])})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: splits)
    with pytest.raises(UserError, match="split val of some/one is empty") as caught:
        load("hub:some/one")
    assert is_one_sentence(str(caught.value))


def test_hub_videos_are_not_copied(tmp_path):
    file = make_video(tmp_path / "v.mp4", frames=3)
    cells = [{"path": None, "bytes": file.read_bytes()}] * 12
    labels = ["b", *["a", "b"] * 5, "a"]
    features = datasets.Features(
        {"video": datasets.Video(decode=False), "label": datasets.Value("string")}
    )
    rows = datasets.Dataset.from_dict({"video": cells, "label": labels}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    before = sorted((tmp_path / "saved").rglob("*"))
    data = load(f"hub:{tmp_path / 'saved'}")
    assert sorted((tmp_path / "saved").rglob("*")) == before
    labels = [row["label"] for split in (data.train, data.val) for row in split]
    assert sorted(labels) == [0] * 6 + [1] * 6 and len(data.val) >= 1
    assert data.train[3]["video"]["bytes"] == file.read_bytes() and data.train[3]["start"] is None


@pytest.mark.parametrize("dataset", ["folder", "ucf101", "kinetics", "hub:no/such", "typo"])
def test_missing_data_is_a_sentence(tmp_path, dataset, monkeypatch):
    def fail(*_):
        raise ConnectionError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for data_dir in (None, str(tmp_path / "no"), str(tmp_path)):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError) as caught:
            load(dataset, data_dir)
        assert is_one_sentence(str(caught.value)), caught.value


def test_limits_are_evenly_spaced(tmp_path):
    make_folder(tmp_path, count=2)
    data = load("folder", tmp_path, limit_train=2, limit_val=1)
    assert labels_by_name(data, data.train) == {"0": "run"} and len(data.val) == 1
    assert [row["label"] for row in data.train] == [0, 1]


# Samples


def test_samples_depend_on_seed_epoch_and_index_alone(tmp_path):
    reader = reader_of(load("folder", make_folder(tmp_path)))
    transform = train_transform((24, 24), None, 0.5, (0.4, 0.4, 0.4, 0.1))
    dataset, other = (
        TrainDataset(reader, ClipOptions(4, 2), (26, 40), transform, seed) for seed in (5, 6)
    )
    keys = [SampleKey(epoch, index, 7) for epoch in range(3) for index in range(4)]
    alone = collate([dataset[key] for key in keys])
    state = torch.get_rng_state()
    assert torch.equal(dataset[keys[5]]["video"], alone["video"][5])
    assert torch.equal(torch.get_rng_state(), state)
    (loaded,) = DataLoader(
        dataset, sampler=keys[::-1], batch_size=12, num_workers=2, collate_fn=collate
    )
    assert torch.equal(loaded["video"].flip(0), alone["video"])
    assert loaded["label"].flip(0).tolist() == [0, 0, 1, 1] * 3
    assert not torch.equal(other[keys[0]]["video"], alone["video"][0])
    assert len({clip.numpy().tobytes() for clip in alone["video"]}) == 12


def test_evaluation_takes_clips_and_windows(tmp_path):
    reader = reader_of(load("folder", make_folder(tmp_path)), "val")
    dataset = EvalDataset(reader, ClipOptions(4, 2, eval_clips=3), 32, WINDOWS)
    batch = collate([dataset[0], dataset[2]])
    assert batch["video"].shape == (2, 9, 4, 3, 32, 32) and batch["label"].tolist() == [0, 1]
    with reader.open(0) as sample:  # of 12 frames
        whole = sample.read(np.arange(12), None)
    for place, chosen in enumerate(([0, 2, 4, 6], [3, 5, 7, 9], [5, 7, 9, 11])):
        for window, left in enumerate((0, 8, 16)):
            expected = whole[chosen][..., left : left + 32]
            assert torch.equal(batch["video"][0, 3 * place + window], expected)


@pytest.mark.parametrize("name", ["v.mp4", "b_frames.avi"])
def test_clips_of_a_video_are_read_in_one_go(tmp_path, monkeypatch, name):
    for split in ("train", "val"):
        for kind in "ab":
            make_video(tmp_path / split / kind / name, frames=250, bf="2" if "avi" in name else "0")
    data = load("folder", tmp_path)
    path = tmp_path / "val/a" / name
    for clips in (1, 3, 10):
        clip = ClipOptions(4, 2, eval_clips=clips)
        with opened(path) as video:
            alone = [
                WINDOWS(video.read(clip_numbers(video.times, clip, place), 32))
                for place in clip.positions()
            ]
        stretches = counted(monkeypatch, PyavVideo, "_stretch")
        rows = counted(monkeypatch, datasets.Dataset, "__getitem__")
        sample = EvalDataset(reader_of(data, "val"), clip, 32, WINDOWS)[0]
        monkeypatch.undo()
        assert torch.equal(sample["video"], torch.cat(alone))
        # Stretches that lie far apart are searched for; a file that can't be searched is read once.
        assert len(stretches) == (3 if clips == 3 and name == "v.mp4" else 1) and len(rows) == 1


def counted(monkeypatch, kind: type, name: str) -> list:
    """The arguments of each call of a method from now on."""
    calls, method = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *args: calls.append(args) or method(*args))
    return calls


def test_windows_lie_along_the_longer_side():
    tall = torch.arange(50).expand(2, 3, 20, 50).transpose(2, 3).byte()
    found = cut_windows(tall, (20, 20), 3)
    assert found.shape == (3, 2, 3, 20, 20) and found[:, 0, 0, 0, 0].tolist() == [0, 15, 30]


def test_augmentation_is_one_for_the_whole_clip():
    torch.manual_seed(0)
    still = torch.randint(0, 256, (1, 3, 40, 60), dtype=torch.uint8).expand(6, -1, -1, -1)
    for area in (None, (0.2, 0.9)):
        transform = train_transform((24, 24), area, 0.5, (0.5, 0.5, 0.5, 0.1))
        changed = {transform(tv_tensors.Video(still)).numpy().tobytes() for _ in range(4)}
        assert len(changed) == 4
        for _ in range(4):
            clip = transform(tv_tensors.Video(still))
            assert clip.shape == (6, 3, 24, 24) and (clip == clip[:1]).all()


def test_flip_is_an_option():
    row = tv_tensors.Video(torch.arange(24).expand(2, 3, 24, 24).to(torch.uint8))
    firsts = {
        flip: {
            train_transform((24, 24), None, flip, NO_JITTER)(row)[0, 0, 0, 0].item()
            for _ in range(20)
        }
        for flip in (0, 0.5, 1)
    }
    assert firsts == {0: {0}, 0.5: {0, 23}, 1: {23}}


def test_windows_that_do_not_fit_are_refused():
    fitting = {"crop_size": [32, 24], "short_side": [32, 40], "eval_short_side": 32}
    VideoOptions(**fitting).check()
    VideoOptions(**fitting | {"short_side": [8, 8], "crop_area": [0.5, 1]}).check()
    for name, value in (("short_side", [31, 40]), ("eval_short_side", 31)):
        with pytest.raises(UserError, match=f"don't fit .* larger --{name}") as caught:
            VideoOptions(**fitting | {name: value}).check()
        assert is_one_sentence(str(caught.value))


# Bad files


def break_file(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no video\n" * 200)
    elif kind == "cut off":
        path.write_bytes(content[: 6 * len(content) // 10])
    elif kind == "sound":
        with av.open(str(path), "w", format="wav") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            silence.rate = 8000
            container.mux(stream.encode(silence))


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut off", "sound"])
@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_broken_files_are_named(tmp_path, kind, suffix):
    for split in ("train", "val"):
        make_video(tmp_path / split / f"b/good.{suffix}", size=(64, 64))
        make_video(tmp_path / split / f"a/broken.{suffix}", size=(64, 64), qmax="2")
    reader = reader_of(load("folder", tmp_path))
    path = tmp_path / f"train/a/broken.{suffix}"
    break_file(path, kind)
    with pytest.raises(SampleError) as caught:
        train_data(reader, 30)[SampleKey(0, 0, 0)]
    assert str(path) in str(caught.value) and is_one_sentence(str(caught.value))
    assert str(SampleError(f"Traceback\n  SampleError: {caught.value}")) == str(caught.value)
    seen = survey(ClipOptions(30), reader)
    assert [fault.sentence for fault in seen.faults] == [str(caught.value)]
    assert (seen.samples, len(seen.frames)) == (2, 1)


def test_beginning_of_a_cut_off_file_can_be_used(tmp_path):
    path = make_video(tmp_path / "v.mp4", size=(64, 64), qmax="2", movflags="faststart")
    fast = tmp_path / "fast.mp4"
    with (
        av.open(str(path)) as read,
        av.open(str(fast), "w", options={"movflags": "faststart"}) as write,
    ):
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    whole = decode_all(fast)
    break_file(fast, "cut off")
    with opened(fast) as video:
        assert torch.equal(video.read(np.arange(4)), whole[:4])
        with pytest.raises(SampleError, match=r"fast\.mp4"):
            video.read(np.arange(22, 26))


def test_segment_without_frames_is_named(tmp_path):
    make_video(tmp_path / "a.mp4", frames=10)
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text("label,file,start,end\nx,a.mp4,3,4\ny,a.mp4,,\n")
    data = load("kinetics", tmp_path)
    with pytest.raises(SampleError, match=r"a\.mp4") as caught:
        train_data(reader_of(data), 4)[SampleKey(0, 0, 0)]
    assert is_one_sentence(str(caught.value))


def test_empty_folder_of_frames_is_named(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(SampleError, match="clip holds no frames"):
        opened(tmp_path / "clip")


def test_survey_measures_and_counts_short_videos(tmp_path):
    make_folder(tmp_path, count=3)  # of 12, 13 and 14 frames
    data = load("folder", tmp_path)
    reader = reader_of(data)
    seen = survey(ClipOptions(13), reader, num_workers=1)
    assert not seen.faults and seen.short == 2
    dataset = train_data(reader, 13)
    loaded = collate([dataset[SampleKey(0, number, number)] for number in range(6)])
    assert loaded["looped"].sum() == 2
    assert sorted(seen.frames.tolist()) == [12, 12, 13, 13, 14, 14]
    assert np.allclose(seen.seconds, seen.frames / 25)
    lines = "\n".join(seen.lines(data.classes))
    assert "12 to 14, median 13" in lines and "25.0 to 25.0" in lines and "2 videos" in lines
    assert "jump  3 videos" in lines


# The synthetic data set


def read_all(data, rows, count: int) -> torch.Tensor:
    videos = (data.open(row["video"], "", "auto") for row in rows.select(range(count)))
    return torch.stack([video.read(np.arange(16)) for video in videos])


def test_synthetic_is_a_function_of_seed_split_and_number():
    data, half, other = load(seed=3), load(seed=3, limit_train=400), load(seed=4)
    first = read_all(data, data.train, 3)
    again = read_all(pickle.loads(pickle.dumps(data)), data.train, 3)
    assert torch.equal(first, again) and first.shape == (3, 16, 3, 64, 64)
    with data.open(data.train[0]["video"], "", "auto") as video:
        assert torch.equal(video.read(np.array([9, 4])), first[0, [9, 4]])
    assert half.train[1] == data.train[2]
    for source, rows in ((other, other.train), (data, data.val)):
        assert not torch.equal(read_all(source, rows, 1)[0], first[0])
    for rows, count in ((data.train, 800), (data.val, 120), (half.train, 400)):
        counts = torch.bincount(torch.tensor(rows["label"]), minlength=6)
        assert len(rows) == count and counts.min() > count / 6 * 0.7


def accuracy(features: torch.Tensor, labels: torch.Tensor, classes: int) -> float:
    """Of a ridge regression on one half, tested on the other and the other way round."""
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    wanted = torch.nn.functional.one_hot(labels, classes).double() - 1 / classes
    halves = torch.arange(len(labels)) % 2
    right = 0
    for half in (0, 1):
        x, y = features[halves == half], wanted[halves == half]
        weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]).double(), x.T @ y)
        right += (features[halves != half] @ weights).argmax(1).eq(labels[halves != half]).sum()
    return right.item() / len(labels)


def test_single_frames_tell_nothing_and_their_order_does():
    labels = torch.arange(300) // 2 % 6
    videos = (
        synthetic.SyntheticVideo([1, number], int(label), 16, (32, 32))
        for number, label in enumerate(labels)
    )
    clips = torch.stack([video.read(np.arange(16)) for video in videos])
    grey = clips.double().mean(2) / 255
    for frame in (0, 8, 15):  # as well at the ends of the videos as in the middle
        pixels = torch.nn.functional.avg_pool2d(grey[:, frame, None], 4).flatten(1)
        statistics = torch.stack([grey[:, frame].mean((1, 2)), grey[:, frame].std((1, 2))], 1)
        assert accuracy(torch.cat([pixels, statistics], 1), labels, 6) < 0.26  # chance is 0.17
    # Brightness constancy: the change over time times the slope tells the direction of motion.
    change, slopes = grey[:, 1:] - grey[:, :-1], torch.gradient(grey[:, :-1], dim=(2, 3))
    flow = torch.stack([(change * slope).mean((1, 2, 3)) for slope in slopes], 1)
    translating = labels < 4
    assert accuracy(flow[translating], labels[translating], 4) > 0.6  # chance is 0.25
    reverse = grey.flip(1)
    change, slopes = reverse[:, 1:] - reverse[:, :-1], torch.gradient(reverse[:, :-1], dim=(2, 3))
    backward = torch.stack([(change * slope).mean((1, 2, 3)) for slope in slopes], 1)
    assert torch.corrcoef(torch.stack([flow.flatten(), backward.flatten()]))[0, 1] < -0.8


@pytest.mark.parametrize("kind", range(6))
def test_each_class_moves_as_it_is_called(kind):
    video = synthetic.SyntheticVideo([0, 0, kind], kind, 16, (64, 64))
    still, actor = video.actors
    assert (still.speeds == 0).all()
    part = {"right": 0, "left": 0, "down": 1, "up": 1, "growing": 2, "shrinking": 2}
    name = synthetic.CLASSES[kind]
    sign = 1 if name in ("right", "down", "growing") else -1
    assert np.flatnonzero(actor.speeds).tolist() == [part[name]]
    assert np.sign(actor.speeds.sum()) == sign
    canvas = np.zeros((2, 64, 64, 3))
    speeds = actor.speeds
    moved = synthetic.Actor("disk", np.ones(3), np.array([0.5, 0.5, 0.3, 0.0]), speeds)
    for frame in (0, 1):
        moved.draw(canvas[frame], frame)
    y, x = (np.nonzero(canvas[frame, ..., 0]) for frame in (0, 1))
    change = {
        0: np.mean(x[1]) - np.mean(y[1]),
        1: np.mean(x[0]) - np.mean(y[0]),
        2: (len(x[0]) - len(y[0])) / 10,
    }
    assert sign * change[part[name]] > 1
    others = [abs(value) for number, value in change.items() if number < 2 and part[name] != number]
    assert max(others) < 0.5
