"""Pictures and masks of every kind: the right values, or one sentence that names the file."""

import io
import os
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data import decode, on_disk
from data.decode import SampleError, read_image, read_mask
from data.masks import IGNORE, MaskRule, UnknownValueError, looks_smoothed
from data.png import SIGNATURE, _chunk
from data.tiles import Window
from errors import UserError
from tasks.detection.headers import read_header
from tests.test_data import is_one_sentence

Y, X = np.mgrid[:20, :30]
RAMP = (X * 8).astype(np.uint8)
RGB = np.stack([Y * 12, X * 8, 255 - Y * 5], -1).astype(np.uint8)


def cell(picture: Image.Image, kind: str, **options) -> dict:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return {"path": None, "bytes": file.getvalue()}


def image_of(picture: Image.Image, kind: str, **options) -> np.ndarray:
    return read_image(cell(picture, kind, **options), "it").numpy().transpose(1, 2, 0)


def mask_cell(values, kind="PNG", mode=None, palette=None, **options) -> dict:
    if palette is None:
        picture = Image.fromarray(values)
    else:
        picture = Image.new("P", (len(values[0]), len(values)))
        picture.putdata(np.ravel(values).tolist())
        picture.putpalette([channel for color in palette for channel in color])
    return cell(picture.convert(mode) if mode else picture, kind, **options)


# Pictures


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG2000"])
def test_sixteen_bits_are_scaled(kind):
    found = image_of(Image.fromarray(RAMP.astype(np.uint16) * 257), kind)
    assert (found == RAMP[..., None]).all()


def test_a_pgm_of_twelve_bits_is_scaled():
    data = b"P5 2 1 4095\n" + struct.pack(">2H", 0, 4095)
    assert read_image({"path": None, "bytes": data}, "it").flatten().tolist() == [0, 255] * 3


def test_fractions_from_0_to_1_are_scaled_and_others_refused():
    found = image_of(Image.fromarray(RAMP / np.float32(255)), "TIFF")
    assert (found == RAMP[..., None]).all()
    for values, words in (
        (RAMP.astype(np.float32), "from 0 to 232"),
        (RGB[..., 0] * np.nan, "nan"),
    ):
        with pytest.raises(SampleError, match=words) as caught:
            image_of(Image.fromarray(values.astype(np.float32)), "TIFF")
        assert is_one_sentence(str(caught.value))


def test_numbers_of_32_bits_have_no_known_range():
    with pytest.raises(SampleError, match="32-bit numbers from 0 to 232"):
        image_of(Image.fromarray(RAMP.astype(np.int32)), "TIFF")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    picture = Image.fromarray(RGB).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    expected = np.asarray(picture.convert("RGB"))
    assert np.abs(image_of(picture, kind).astype(int) - expected).mean() < 3


def test_a_jpeg_in_cmyk_keeps_its_colours():
    found = image_of(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98)
    assert np.abs(found.astype(int) - RGB).mean() < 3


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF", "JPEG"])
def test_exif_turns_every_kind_of_picture_and_mask(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    found = image_of(Image.fromarray(RGB), kind, exif=exif, **options)
    assert found.shape == (30, 20, 3)
    if kind != "JPEG":
        assert (found == np.rot90(RGB, -1)).all()
        mask = read_mask(cell(Image.fromarray(RAMP), kind, exif=exif, **options), "it").values
        assert (mask.reshape(30, 20, -1)[..., 0] == np.rot90(RAMP, -1)).all()
    stored = cell(Image.fromarray(RGB), kind, exif=exif, **options)
    assert read_image(stored, "it", upright=False).shape == (3, 20, 30) or kind == "TIFF"


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_an_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 6), color) for color in ((250, 0, 0), (0, 0, 250))]
    found = image_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert found.shape == (6, 8, 3) and np.abs(found.astype(int) - (250, 0, 0)).max() < 12


def test_a_flipped_bit_in_a_png_is_a_sentence_or_changes_nothing():
    """torchvision's decoder ends the process at almost every bit."""
    data = cell(Image.fromarray(RGB), "PNG")["bytes"]
    right = read_image({"path": None, "bytes": data}, "it")
    refused = 0
    for bit in range(0, 8 * len(data), 11):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert torch.equal(read_image({"path": None, "bytes": bytes(changed)}, "it"), right)
        except SampleError as error:
            refused += 1
            assert is_one_sentence(str(error)) and str(error).startswith("it can't be decoded")
    assert refused > len(data) * 8 / 11 * 0.9


def test_a_pipe_and_a_program_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(SampleError, match="no regular file"):
        read_image({"path": str(tmp_path / "a.jpg"), "bytes": None}, "a.jpg")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    with pytest.raises(SampleError, match="not an image"):  # Pillow would start Ghostscript
        read_image({"path": None, "bytes": script}, "b.jpg")


# Masks


def test_the_colours_of_a_palette_count_where_classes_have_colours():
    rule = MaskRule.of_ids({0: 0, 1: 1, 2: 2}, [((0, 0, 0), 0), ((200, 0, 0), 1), ((0, 0, 200), 2)])
    for palette, expected in (
        ([(0, 0, 0), (200, 0, 0), (0, 0, 200)], [0, 1, 2]),
        ([(0, 0, 200), (0, 0, 0), (200, 0, 0)], [2, 0, 1]),  # as a quantiser numbers them
    ):
        stored = read_mask(mask_cell([[0, 1, 2]], palette=palette), "it")
        assert rule(*stored)[0].tolist() == expected
        plain = MaskRule.of_ids({0: 0, 1: 1, 2: 2})  # without colours the ids count
        assert plain(*stored)[0].tolist() == [0, 1, 2]
    stored = read_mask(mask_cell([[0, 1]], palette=[(0, 0, 0), (9, 9, 80)]), "it")
    with pytest.raises(UnknownValueError, match=r"\(9, 9, 80\) in its palette"):
        rule(*stored)


def test_a_palette_of_greys_stands_for_its_greys_or_for_the_ids():
    ids = MaskRule.of_ids({value: value for value in range(256)})
    for palette, expected in (
        ([(0,) * 3, (5,) * 3, (9,) * 3], [0, 5, 9]),  # as optimisers store masks of 0, 5 and 9
        ([(0,) * 3, (1,) * 3, (2,) * 3], [0, 1, 2]),
        ([(0,) * 3, (128,) * 3, (255,) * 3], [0, 1, 2]),  # to be looked at
    ):
        stored = read_mask(mask_cell([[0, 1, 2]], palette=palette), "it")
        assert ids(*stored)[0].tolist() == expected


TWO_GREYS = MaskRule.of_ids({0: 0, 255: 1}, [((0, 0, 0), 0), ((255,) * 3, 1)])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_is_0_and_255_or_0_and_1(kind):
    white = np.array([[0, 0, 255, 255]] * 4, np.uint8)
    stored = read_mask(mask_cell(white, kind, mode="1"), "it")
    assert TWO_GREYS(*stored)[0].tolist() == [0, 0, 1, 1]
    if kind != "GIF":  # which has no images of one bit
        assert MaskRule.of_ids({0: 0, 1: 1})(*stored)[0].tolist() == [0, 0, 1, 1]
    assert TWO_GREYS(*read_mask(mask_cell(white, kind), "it"))[0].tolist() == [0, 0, 1, 1]


def test_greys_of_two_and_four_bits_are_ids():
    """Pillow spreads them over 0 to 255."""
    for bits in (2, 4):
        count = 1 << bits
        packed = np.packbits(
            (np.arange(count, dtype=np.uint8)[:, None] >> np.arange(bits)[::-1]) & 1
        ).tobytes()
        header = struct.pack(">IIBBBBB", count, 1, bits, 0, 0, 0, 0)
        stored = read_mask({"path": None, "bytes": png(header, b"\0" + packed)}, "it")
        assert stored.values[0].tolist() == list(range(count))
        ids = MaskRule.of_ids({value: value for value in range(count)})
        assert ids(*stored)[0].tolist() == list(range(count))
        assert TWO_GREYS(stored.values[:, [0, -1]], stored.palette)[0].tolist() == [0, 1]


def png(header: bytes, body: bytes) -> bytes:
    import zlib

    from data.png import SIGNATURE, _chunk

    body = zlib.compress(body)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {})])
def test_masks_compressed_with_losses_are_named(kind, options):
    with pytest.raises(SampleError, match="compressed with losses") as caught:
        read_mask(mask_cell(RAMP, kind, **options), "it")
    assert is_one_sentence(str(caught.value))
    if kind == "WEBP":
        stored = read_mask(mask_cell(RAMP, kind, lossless=True), "it")
        assert (stored.values[..., 0] == RAMP).all()


def test_whole_numbers_in_any_type_are_ids_and_fractions_are_not():
    for kind in (np.float32, np.int32, np.uint16):
        values = np.array([[0, 3, 255]], kind)
        assert read_mask(mask_cell(values, "TIFF"), "it").values.tolist() == [[0, 3, 255]]
    with pytest.raises(SampleError, match="fractions"):
        read_mask(mask_cell(np.array([[0.5]], np.float32), "TIFF"), "it")
    with pytest.raises(SampleError, match="value -1"):
        read_mask(mask_cell(np.array([[-1]], np.int32), "TIFF"), "it")


def test_a_pgm_that_pillow_scales_is_refused():
    data = b"P5 2 1 20\n" + bytes([0, 20])
    with pytest.raises(SampleError, match="largest value is 20"):
        read_mask({"path": None, "bytes": data}, "it")
    data = b"P5 2 1 255\n" + bytes([0, 20])
    assert read_mask({"path": None, "bytes": data}, "it").values.tolist() == [[0, 20]]


def test_smoothed_masks_are_told_from_masks_of_many_classes():
    circle = (np.hypot(*np.mgrid[-40:40, -40:40]) < 25).astype(np.uint8) * 255
    small = Image.fromarray(circle).resize((51, 51), Image.Resampling.BICUBIC)
    assert looks_smoothed(np.asarray(small)) and not looks_smoothed(circle)
    many = np.kron(np.arange(100, dtype=np.uint8).reshape(10, 10), np.ones((6, 6), np.uint8))
    assert not looks_smoothed(many)
    assert IGNORE == 255


def test_pictures_beyond_the_usual_limit_of_pillow_are_read():
    """Bits, because they are written and read in a moment."""
    picture = Image.new("1", (14_000, 14_000))
    picture.putpixel((13_999, 7), 1)
    stored = cell(picture, "PNG")
    assert read_header(stored).upright == (14_000, 14_000)
    values = read_mask(stored, "it").values
    assert values.shape == (14_000, 14_000) and values[7, 13_999] and values[:8].sum() == 1


def test_pictures_that_would_fill_the_memory_are_refused():
    sides = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    data = SIGNATURE + _chunk(b"IHDR", sides) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    with pytest.raises(SampleError, match="more than 1,073,741,824 pixels") as caught:
        read_image({"path": None, "bytes": data}, "it")
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_bands_make_the_whole_image(mode: str, orientation: int, monkeypatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (23, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = cell(image, "TIFF" if mode in ("CMYK", "I;16") else "PNG", exif=exif)
    whole = read_image(stored, "it")
    monkeypatch.setattr(decode, "BAND", 150)
    assert torch.equal(read_image(stored, "it"), whole)
    monkeypatch.setattr(on_disk, "LARGE", 1000)
    kept = on_disk.read_to_disk_if_large(stored, "it")
    assert kept.shape == whole.shape
    assert torch.equal(kept.read(Window(0, 0, *whole.shape[1:])), whole)


def test_a_full_disk_is_not_the_picture_s_fault(monkeypatch) -> None:
    def full(pixels: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(on_disk, "LARGE", 1000)
    file = SimpleNamespace(write=full)
    monkeypatch.setattr(on_disk.tempfile, "TemporaryFile", lambda: file)
    for kind in ("PNG", "JPEG"):
        with pytest.raises(UserError, match=r"No space left.*TMPDIR"):
            on_disk.read_to_disk_if_large(cell(Image.fromarray(RGB), kind), "it")
