"""Class files: every form gives its names and colours, or one sentence."""

import pytest

from data.class_files import read_class_file, read_class_names, read_numbered_names
from data.class_lists import by_number, label_text
from errors import UserError
from inference.weights import _listed

ROAD, BUS = (10, 20, 30), (200, 100, 50)


def read(tmp_path, content, name="classes.txt"):
    (tmp_path / name).write_text(content)
    return read_class_file(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "road\nbus stop\n",
        "# classes\nroad\n\nbus stop\n",
        "class\nroad\nbus stop\n",
        "Pixel Value, Class\n0, road\n1, bus stop\n",
        "Pixel Value,Class\n1,bus stop\n0,road\n",
        "0: road\n1: bus stop\n",
        "0 road\n1 bus stop\n",
        "id;name\n0;road\n1;bus stop\n",
        "0\troad\n1\tbus stop\n",
    ],
)
def test_names(tmp_path, content):
    assert read(tmp_path, content) == (["road", "bus stop"], None)


@pytest.mark.parametrize(
    "content",
    [
        "name,r,g,b\nroad,10,20,30\nbus stop,200,100,50\n",
        "10 20 30 road\n200 100 50 bus stop\n",
        "road\t10\t20\t30\nbus stop\t200\t100\t50\n",
        "road #0a141e\n#C86432 bus stop\n",
        "# label:color_rgb:parts:actions\nroad:10,20,30::\nbus stop:200,100,50::\n",
        "0 road 10 20 30\n1 bus stop 200 100 50\n",
        "id,name,r,g,b\n0,road,10,20,30\n1,bus stop,200,100,50\n",
        "1,200 100 50,bus stop\n0,10 20 30,road\n",
        "0: road: #0a141e\n1: bus stop: #c86432\n".replace(": #", " #"),
    ],
)
def test_names_and_colours(tmp_path, content):
    assert read(tmp_path, content) == (["road", "bus stop"], [ROAD, BUS])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '["yes", "no"]'),
        ("a.json", '{"0": "yes", "1": "no"}'),
        ("a.json", '{"yes": 0, "no": 1}'),
        ("a.json", '[{"id": 1, "name": "no"}, {"id": 0, "name": "yes"}]'),
        ("a.yaml", "names: [yes, no]\n"),
        ("a.yml", "path: x\nnames:\n  0: yes\n  1: no\n"),
    ],
)
def test_json_and_yaml(tmp_path, name, content):
    assert read(tmp_path, content, name) == (["yes", "no"], None)


def test_json_with_colours(tmp_path):
    content = '[{"name": "road", "color": [10, 20, 30]}, {"name": "bus", "color": "#C86432"}]'
    assert read(tmp_path, content, "a.json") == (["road", "bus"], [ROAD, BUS])


def test_numbers_that_belong_to_names_stay(tmp_path):
    names = ["3 series", "5 series", "i3"]
    assert read(tmp_path, "\n".join(names)) == (names, None)
    names = ["1 euro", "2 euro", "5 euro"]
    assert read(tmp_path, "\n".join(names)) == (names, None)


def test_a_number_without_a_name_is_no_class(tmp_path):
    assert read(tmp_path, "1: a\n3: b\n")[0] == ["void", "a", "void", "b"]
    assert read(tmp_path, "1 #0a141e a\n2 #c86432 b\n".replace("#", "#")) == (
        ["void", "a", "b"],
        [None, ROAD, BUS],
    )


@pytest.mark.parametrize(
    "first", ["red", "index", "value", "id", "parts", "r", "red label", "rgb", "green blue"]
)
def test_a_class_whose_name_is_also_that_of_a_column_stays(tmp_path, first):
    assert read(tmp_path, f"{first}\nyellow\ngreen\n")[0] == [first, "yellow", "green"]


@pytest.mark.parametrize("header", ["name", "Classes", "class name", "id name", "name r g b"])
def test_a_header_is_no_class(tmp_path, header):
    assert read(tmp_path, f"{header}\nyellow\ngreen\n")[0] == ["yellow", "green"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "1: cat\n2: dog\n"),
        ("a.json", '[{"id": 2, "name": "dog"}, {"id": "1.0", "name": "cat"}]'),
    ],
)
def test_numbers_from_1_make_no_class_of_0(tmp_path, name, content):
    read(tmp_path, content, name)
    assert read_class_names(tmp_path / name) == {1: "cat", 2: "dog"}
    with pytest.raises(UserError, match="but not 0: number them from 0"):
        read_numbered_names(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '[{"name": "a", "id": 0}, {"name": "b"}]', "to every class or to none, and b"),
        ("a.json", '[{"name": "b"}, {"name": "a", "id": 0}]', "to every class or to none, and b"),
        ("a.json", '[{"name": "a", "id": 1.5}, {"name": "b", "id": 0}]', "1.5 is no whole number"),
        ("a.csv", "label\ncat\ndog\n", "heading or a class"),
        ("a.json", '{"300000000": "b"}', "number 300000000, but numbers go from 0"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"0": ["a"]}', "is no name"),
        ("a.json", '[{"id": 0}]', "is no name"),
        ("a.json", "7", "it is a int"),
        ("a.txt", "0: a\n0: b\n", "gives the number 0 to a and to b"),
        ("a.txt", "a 0 0 0\nb\n", "to every class or to none"),
        ("a.txt", "# only a comment\n", "is empty"),
        ("a.txt", "999999999: a\n", "number 999999999"),
    ],
)
def test_refused(tmp_path, name, content, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path, content, name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_labels_are_whole_numbers_in_any_notation():
    texts = [" 3", "3.0", "03", "x3", "0.0", "10", "2.5"]
    assert [label_text(text) for text in texts] == ["3", "3", "3", "x3", "0", "10", "2.5"]
    assert sorted(["10", "a", "9"], key=by_number) == ["9", "10", "a"]


def test_classes_of_weights_are_those_of_their_training(tmp_path):
    (tmp_path / "c.txt").write_text("0: void\n1: cat\n2: dog\n")
    assert _listed(str(tmp_path / "c.txt"), "segmentation") == ["cat", "dog"]
    (tmp_path / "c.txt").write_text("1: cat\n2: dog\n")
    for task in ("segmentation", "classification", "video"):
        assert _listed(str(tmp_path / "c.txt"), task) == ["cat", "dog"]
    assert _listed("a,b", "video") == ["a", "b"]
