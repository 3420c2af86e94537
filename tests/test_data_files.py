"""Finding files, splitting one folder, and text files: what every task's sources share."""

import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from data.faults import Faults
from data.folders import (
    IMAGE_SUFFIXES,
    VAL,
    data_root,
    files_below,
    find_files,
    left_out_note,
    split_folder,
    stand_in_note,
)
from data.holdout import group_of, held_out, hold_out, wants_holdout
from data.hub import open_hub
from data.textfiles import read_json, read_json_lists, read_text, read_yaml
from errors import UserError
from tasks.classification.options import ClassificationOptions
from tasks.video.options import VideoOptions
from tasks.video.rows import Clip, make_data


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_below(folder: Path, faults: Faults | None = None) -> list[str]:
    faults = Faults() if faults is None else faults
    return [path.relative_to(folder).as_posix() for path in files_below(folder, faults)]


# Finding files


def test_links_are_followed_and_every_real_folder_is_entered_once(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "elsewhere"
    touch(data / "b/1.jpg", data / "2.jpg", outside / "deep/3.jpg", outside / "4.jpg")
    for name, target in (("a", "b"), ("self", "."), ("again", "."), ("out", outside)):
        (data / name).symlink_to(target)
    (outside / "back").symlink_to(data)
    (data / "5.jpg").symlink_to(outside / "4.jpg")  # a link to a file is a file
    expected = ["2.jpg", "5.jpg", "b/1.jpg", "out/4.jpg", "out/deep/3.jpg"]
    assert names_below(data) == expected


def test_the_order_is_that_of_the_parts_of_the_paths(tmp_path):
    touch(*(tmp_path / name for name in ("a-b/1.jpg", "a/2.jpg", "a/10.jpg", "B/1.jpg")))
    assert names_below(tmp_path) == [
        path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.jpg"))
    ]


def test_hidden_files_and_folders_are_not_found(tmp_path):
    hidden = (".ipynb_checkpoints/a.jpg", ".b.jpg", "__MACOSX/c.jpg")
    touch(tmp_path / "d.jpg", *(tmp_path / name for name in hidden))
    assert names_below(tmp_path) == ["d.jpg"]


def test_pipes_unreadable_folders_and_odd_names_are_faults(tmp_path, monkeypatch):
    touch(tmp_path / "a.jpg", tmp_path / "locked/b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    open(odd, "w").close()
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    faults = Faults()
    assert [path.name for path in find_files(tmp_path, faults).files] == ["a.jpg"]
    sentences = [fault.sentence for fault in faults.found]
    assert len(sentences) == 3
    for word in ("pipe.jpg is no regular file", "locked can't be read (Permission denied)"):
        assert any(word in sentence for sentence in sentences)
    assert any("\\xff\\xfe.jpg is not UTF-8" in sentence for sentence in sentences)
    with pytest.raises(UserError, match=r"\(2 more faults: --check_data lists all\)\.$"):
        find_files(tmp_path)


def test_everything_that_pillow_reads_is_found_and_the_rest_is_named(tmp_path):
    wanted = ["a.jfif", "b.JPE", "c.avif", "d.jp2", "e.tga", "f.ppm", "g.jpg"]
    others = ["h.heic", "i.txt", "j.eps", "k.mpg", "l"]
    touch(*(tmp_path / name for name in wanted + others))
    found = find_files(tmp_path, Faults())
    assert [path.name for path in found.files] == wanted
    (note,) = left_out_note(tmp_path, found.left_out, "images")
    assert note.startswith("5 files are left out") and "1 .heic" in note and "h.heic" in note
    assert not left_out_note(tmp_path, [], "images")
    assert {".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= IMAGE_SUFFIXES


@pytest.mark.parametrize("name", ["val", "Val", "VALIDATION", "valid", "dev", "Test", "testing"])
def test_splits_have_their_usual_names_in_any_case(tmp_path, name):
    (tmp_path / name).mkdir()
    assert split_folder(tmp_path, VAL).name == name
    assert bool(stand_in_note(tmp_path, name)) == name.lower().startswith("test")


@pytest.mark.parametrize("pair", [("val", "Val"), ("val", "valid"), ("Dev", "validation")])
def test_two_folders_of_one_split_are_refused(tmp_path, pair):
    for name in pair:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="holds both"):
        split_folder(tmp_path, VAL)


def test_an_unreadable_data_folder_is_a_sentence(tmp_path, monkeypatch):
    def refuse(place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    options = SimpleNamespace(dataset="folder", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="can't be read"):
        data_root(options, "images")


# Text files


def test_yaml_values_stay_as_written(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("names: [yes, no, 1.0, null, 2020-01-01]\nnc: 5\n")
    names = ["yes", "no", "1.0", "null", "2020-01-01"]
    assert read_yaml(file) == {"names": names, "nc": "5"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: &a [x, x]\nb: [*a, *a]\n", r"Line 2 of .* anchor \*a"),
        ("a: [", "not valid YAML"),
        ("[" * 20000, "nested too deeply"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_yaml_that_is_refused(tmp_path, content, reason):
    file = tmp_path / "a.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=reason) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


def test_json_nested_too_deeply_and_a_pipe_are_sentences(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        read_text(tmp_path / "pipe")


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": [{"b": [1, 2.5, -3e2]}, null, "x", []], "c": "d", "e": {"f": []}}',
        b'\xef\xbb\xbf{"a": [{"b": 1, "b": 2}], "a": [3]}',
        b'{"a": [NaN, Infinity], "c": 1}',
        b'{"a": ["\\ud800"]}',
        b'{"a": [1e999, 123456789012345678901234567890]}',
        '{"a": ["ä", "\\u00e4"]}'.encode(),
        b"[1, 2]",
        b"3",
    ],
)
def test_lists_parsed_one_by_one_are_those_of_json(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    found, whole = read_json_lists(file), read_json(file)
    if isinstance(whole, dict):
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            same = list(found[name]) if isinstance(value, list) else found[name]
            assert repr(same) == repr(value)  # NaN differs from itself
            assert not isinstance(value, list) or len(found[name]) == len(value)
    else:
        assert found == whole


@pytest.mark.parametrize(
    "content",
    [b'{"a": [1,]}', b'{"a": ["\xff"]}', b'{"a": [' + b"[" * 100_000, b'{"a": [1]', b""],
)
def test_lists_that_are_no_json_are_refused_in_the_same_words(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    said = []
    for read in (read_json, read_json_lists):
        with pytest.raises(UserError) as caught:
            read(file)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_number_that_json_refuses_is_a_sentence(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": [' + "9" * 5000 + "]}")
    with pytest.raises(UserError, match="not valid JSON"):
        list(read_json_lists(file)["a"])


# Holding out


def options(**given) -> ClassificationOptions:
    return ClassificationOptions(dataset="folder", data_dir="x", **given)


NAMES = [f"{kind}/{number:04d}.jpg" for kind in ("cat", "dog") for number in range(500)]


def test_adding_files_moves_none_to_the_other_side():
    few, all_names = NAMES[::3], NAMES
    held = dict(zip(all_names, held_out(all_names, options(val_share=0.2), "x"), strict=True))
    again = held_out(few, options(val_share=0.2), "x")
    assert [held[name] for name in few] == again.tolist()
    assert 0.16 < sum(held.values()) / len(held) < 0.24
    more = held_out(all_names, options(val_share=0.3), "x")
    assert all(more[number] for number, name in enumerate(all_names) if held[name])


def test_folds_share_the_samples_out():
    folds = [held_out(NAMES, options(fold=f"{number}/5"), "x") for number in range(1, 6)]
    assert (sum(fold.astype(int) for fold in folds) == 1).all()
    assert all(150 < fold.sum() < 250 for fold in folds)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("clip7_frame_0012.jpg", "clip7"),
        ("clip7/frame0012.png", "clip7"),
        ("a/IMG_12_jpg.rf.0a1b2c.jpg", "a/IMG_12"),
        ("slide-3_tile_4_5.png", "slide-3"),
        ("-3B32lodo2M_000059_000069.mp4", "-3B32lodo2M"),
        ("IMG_1234.jpg", "IMG_1234.jpg"),
        ("2007_000032.jpg", "2007_000032.jpg"),
        ("000000000009.jpg", "000000000009.jpg"),
    ],
)
def test_parts_of_one_original_are_one_group(name, group):
    assert group_of(name) == group


def test_groups_stay_together_also_by_a_pattern():
    frames = [f"video{v}_frame_{f:03d}.jpg" for v in range(40) for f in range(5)]
    out = held_out(frames, options(val_share=0.25), "x").reshape(40, 5)
    assert (out.all(1) | ~out.any(1)).all() and out.any() and not out.all()
    names = [f"p{patient}-{scan}.png" for patient in range(40) for scan in range(5)]
    out = held_out(names, options(fold="1/4", val_group=r"p(\d+)"), "x").reshape(40, 5)
    assert (out.all(1) | ~out.any(1)).all() and out.any()


def test_few_samples_leave_one_on_each_side():
    train, val, (note,) = hold_out(["a", "b"], ["a.jpg", "b.jpg"], options(), "here")
    assert len(train) == len(val) == 1 and "1 of 2" in note
    with pytest.raises(UserError, match="1 originals"):
        held_out(["v_frame_1.jpg", "v_frame_2.jpg"], options(val_share=0.5), "here")


def test_small_classes_are_on_both_sides_and_groups_stay_whole():
    names = [f"v{v}_frame_{f}.jpg" for v in range(60) for f in range(3)]
    labels = [
        f"rare{v // 2}" if v < 20 and f == 0 else "common" for v in range(60) for f in range(3)
    ]
    out = held_out(names, options(val_share=0.1), "x", labels)
    assert (out.reshape(60, 3).all(1) == out.reshape(60, 3).any(1)).all()
    for label in set(labels):
        own = out[[number for number, other in enumerate(labels) if other == label]]
        assert own.any() and not own.all()


def test_a_class_of_one_original_is_for_training():
    names = [f"{number}.jpg" for number in range(50)]
    for number in range(50):
        labels = ["a"] * 50
        labels[number] = "b"
        assert not held_out(names, options(), "x", labels)[number]


def test_adding_a_file_moves_none_of_classes_that_chance_divides():
    names = [f"{number}.jpg" for number in range(30)]
    labels = ["a", "b"] * 15
    before = held_out(names, options(val_share=0.2), "x", labels)
    plain = held_out(names, options(val_share=0.2), "x")
    assert (before == plain).all()
    for number in range(200):
        after = held_out([*names, f"new{number}"], options(val_share=0.2), "x", [*labels, "a"])
        assert (after[:-1] == before).all()


def test_a_split_of_its_own_is_not_replaced():
    assert not wants_holdout(options(), "x", "val")
    assert wants_holdout(options(val_share=0.1), "x", None)
    assert wants_holdout(options(fold="1/2"), "x", "Test")  # a test split stays unseen
    with pytest.raises(UserError, match=r"has a split valid.*--val_share"):
        wants_holdout(options(val_share=0.1), "x", "valid")
    with pytest.raises(UserError, match="leave out --val_group"):
        wants_holdout(options(val_group="a"), "x", "Test")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"fold": "0/5"}, "--fold is 0/5"),
        ({"fold": "6/5"}, "--fold is 6/5"),
        ({"fold": "a"}, "--fold is a"),
        ({"fold": "1/2", "val_share": 0.1}, "give one"),
        ({"val_share": 1.0}, "--val_share is 1.0"),
        ({"val_group": "("}, "no regular expression"),
    ],
)
def test_holdout_options_out_of_range(given, reason):
    with pytest.raises(UserError, match=reason):
        options(**given).check()


def test_labels_count_in_every_source(tmp_path):
    classes = ["many"] * 30 + [f"one{number}" for number in range(30)]
    clips = [Clip(str(tmp_path / f"{kind}/{n}.mp4"), kind) for n, kind in enumerate(classes)]
    video = VideoOptions(dataset="folder", data_dir=str(tmp_path), val_share=0.3)
    assert set(make_data(video, clips, None, tmp_path).train["label"][:]) == set(range(31))
    rows = datasets.Dataset.from_dict({"image": [str(n) for n in range(60)], "label": classes})
    rows.save_to_disk(tmp_path / "hub")
    hub = ClassificationOptions(dataset=f"hub:{tmp_path / 'hub'}", val_share=0.3)
    train, val, _ = open_hub(hub, "image", label_column="label")
    assert set(train["label"][:]) == set(classes) and set(val["label"][:]) == {"many"}
