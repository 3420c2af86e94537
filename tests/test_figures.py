"""Figures: what is drawn where, and in which colour."""

import pytest
import torch

from data.masks import IGNORE, default_colors
from figures.canvas import FONT, GAP, INK, LINE, WRONG, framed, grid, shortened, stack, text_line
from figures.confusion import confusion_figure
from figures.sheet import contact_sheet, legend
from tasks.classification.figures import SIDE, misclassified_figure
from tasks.classification.metrics import Mistake
from tasks.segmentation.figures import segmentation_panel
from tasks.video.figures import FRAMES, HEIGHT, film_sheet, film_strip


def shade(value: int, height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def colors_of(figure: torch.Tensor) -> set[tuple[int, ...]]:
    assert figure.dtype == torch.uint8 and figure.shape[0] == 3
    red, green, blue = figure.int()
    codes = (red << 16 | green << 8 | blue).unique().tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}


def test_grid_and_stack_fill_up_with_paper():
    parts = [shade(10 * number, height, 8) for number, height in ((1, 5), (2, 9), (3, 4))]
    figure = grid(parts, columns=2)
    assert figure.shape == (3, 2 * 9 + GAP, 2 * 8 + GAP)
    assert (figure == 255).sum() == figure.numel() - sum(part.numel() for part in parts)
    assert torch.equal(figure[:, :9, 8 + GAP :], parts[1])
    assert torch.equal(figure[:, 9 + GAP : 9 + GAP + 4, :8], parts[2])
    assert torch.equal(grid(parts[:1], columns=2), parts[0])
    assert stack(parts).shape == (3, 18, 8) and stack(parts, GAP).shape == (3, 18 + 2 * GAP, 8)
    frame = framed(parts[0])
    assert frame.shape == (3, 5 + 2 * GAP, 8 + 2 * GAP) and (frame[:, 0] == 255).all()


def test_text_has_its_colours_and_is_shortened():
    line = text_line(("one", INK), ("two", WRONG), width=200)
    assert line.shape == (3, LINE, 200) and {INK, WRONG} <= colors_of(line)
    assert shortened("short", 200) == "short"
    cut = shortened("a long name", 40)
    assert cut.endswith("…") and len(cut) > 2 and FONT.getlength(cut) <= 40


def test_panel_shows_image_truth_and_prediction():
    colors = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    truth = torch.ones(20, 24, dtype=torch.uint8)
    truth[0] = IGNORE
    panel = segmentation_panel(shade(100, 10, 12), truth, torch.full((20, 24), 2), colors)
    assert panel.shape == (3, 200, 3 * 240 + 2 * GAP)  # enlarged ten times
    assert panel[:, 50, 0].tolist() == [100, 100, 100]
    middle, last = panel.shape[2] // 2, panel.shape[2] - 1
    assert panel[:, 50, middle].tolist() == [216, 24, 24]  # a quarter is the image
    assert panel[:, 0, middle].tolist() == [0, 0, 0]
    assert panel[:, 0, last].tolist() == [24, 24, 216]


def test_legend_and_sheet_show_every_colour():
    classes = [f"class number {i}" for i in range(30)]
    colors = default_colors(31)[1:]
    for width in (200, 900):
        shown = legend(classes, colors, width)
        assert shown.shape[2] <= width and set(colors) <= colors_of(shown)
    sheet = contact_sheet([shade(90, 192, 600), shade(80, 128, 20)], classes, colors)
    assert sheet.shape[1] > 320 and sheet.shape[2] == 600 + 2 * GAP
    assert {(90,) * 3, (80,) * 3, *colors} <= colors_of(sheet)
    assert contact_sheet([shade(90, 10, 9000)], classes, colors).shape[2] < 1600


def test_misclassified_images_stand_over_their_captions():
    images = [shade(40 * number, 20, 30) for number in range(1, 7)] + [shade(250, 300, 100)]
    mistakes = [Mistake(0.9, number % 2, 1 - number % 2, number) for number in range(7)]
    figure = misclassified_figure(images, mistakes, ["cat", "dog" * 20])
    assert figure.shape[2] == 6 * SIDE + 7 * GAP and WRONG in colors_of(figure)
    height = (figure.shape[1] - GAP) // 2
    for number, image in enumerate(images):
        y, x = GAP + number // 6 * height, GAP + number % 6 * (SIDE + GAP)
        cell = figure[:, y : y + SIDE, x : x + SIDE]
        shown = (cell == image[:, :1, :1]).all(0)
        assert shown[SIDE // 2, SIDE // 2] and shown.float().mean() > 0.2
    assert (figure[:, GAP + height :, GAP + SIDE :] == 255).all()
    assert INK in colors_of(misclassified_figure([], [], ["cat"]))


def test_film_strip_shows_frames_in_order_and_marks_mistakes():
    clip = torch.arange(0, 160, 10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 48, 64)
    strip = film_strip(clip, "running", "jumping", 0.7)
    assert strip.shape == (3, HEIGHT + LINE, FRAMES * 128 + (FRAMES - 1) * GAP)
    shown = strip[0, 20, 64 :: 128 + GAP].tolist()
    assert shown == [0, 20, 40, 60, 90, 110, 130, 150]
    right = film_strip(clip, "running", "running", 0.7)
    assert WRONG in colors_of(strip) and WRONG not in colors_of(right)
    narrow = film_strip(clip[:1, :, :, :8], "a class with a long name", "indeed", 0.5)
    assert narrow.shape[2] > 150
    assert film_sheet([strip, narrow]).shape[2] == strip.shape[2] + 2 * GAP


@pytest.mark.parametrize("classes", [1, 2, 30, 31, 400])
def test_confusion_figure(classes):
    names = [f"class {number}" for number in range(classes)]
    figure = confusion_figure(1234 * torch.eye(classes), names)
    assert (20, 80, 150) in colors_of(figure) and max(figure.shape) < 1400
    # The last class is at the lower right; beside the diagonal there is nothing.
    assert figure[:, -12, -12].tolist() == [20, 80, 150]
    if classes > 1:
        assert figure[:, -12, -12 - 34].tolist() == [255, 255, 255]
