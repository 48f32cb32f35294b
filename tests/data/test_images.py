import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from psp_fast.data.images import read_image, read_label, read_pair, write_png
from psp_fast.errors import DataError

ORIENTATION = 0x0112


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def raw_png(path, bits, width, height, rows):
    """A grey PNG of any bit depth; rows holds each packed row after its filter byte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_rgb_is_read_as_it_is(tmp_path, rgb):
    image = read_image(saved(tmp_path / "a.png", Image.fromarray(rgb)))
    assert image.dtype == np.uint8
    assert np.array_equal(image, rgb)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_grey_fills_three_channels(tmp_path, rgb, name):
    image = read_image(saved(tmp_path / name, Image.fromarray(rgb[..., 0])))
    assert np.array_equal(image, np.stack([rgb[..., 0]] * 3, axis=-1))


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    image = read_image(saved(tmp_path / "a.png", Image.fromarray(bits)))
    assert np.array_equal(image[..., 1], bits * 255)


def test_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert read_image(saved(tmp_path / "a.png", image)).tolist() == expected


def test_transparency_is_composited_over_white(tmp_path):
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    image = read_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert image.tolist() == [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]


def test_grey_with_alpha_is_composited_over_white(tmp_path):
    image = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(np.array([[0, 255]], np.uint8))])
    assert read_image(saved(tmp_path / "a.png", image))[0, :, 0].tolist() == [255, 100]


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert read_image(saved(tmp_path / "a.png", image, transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, name):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert read_image(saved(tmp_path / name, Image.fromarray(values)))[0, :, 2].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535, 257]], np.int32), [0, 255, 1]),  # fits 16 bits
        (np.array([[-1000, 99000, 49000]], np.int32), [0, 255, 128]),
        (np.array([[0.0, 1.0, 0.5]], np.float32), [0, 255, 128]),
        (np.array([[0.0, 200.4, 7.0]], np.float32), [0, 200, 7]),
        (np.array([[-1.0, 3.0, 1.0]], np.float32), [0, 255, 128]),
        (np.array([[np.nan, 255.0, np.inf]], np.float32), [0, 255, 0]),
        (np.array([[-7.0, -7.0, -7.0]], np.float32), [0, 0, 0]),
    ],
)
def test_32_bit_tiff_is_scaled_to_8_bits(tmp_path, values, expected):
    assert read_image(saved(tmp_path / "a.tif", Image.fromarray(values)))[0, :, 0].tolist() == expected


def test_cmyk_is_converted(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = read_image(saved(tmp_path / "a.tif", image))[4, 4]
    assert pixel.tolist() == [255, 0, 0]


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("L", (4, 3), grey) for grey in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.unique(read_image(tmp_path / "a.gif")).tolist() == [10]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, name):
    grey = np.full((16, 32), 40, np.uint8)
    grey[:8, :16] = 220  # the stored top left
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = read_image(saved(tmp_path / name, Image.fromarray(grey), exif=exif))
    assert image.shape == ((16, 32, 3) if orientation <= 4 else (32, 16, 3))
    corners = {(0, 0): {1, 5}, (0, -1): {2, 6}, (-1, -1): {3, 7}, (-1, 0): {4, 8}}  # where it is in the upright image
    bright = [corner for corner in corners if image[corner][0] > 128]
    assert len(bright) == 1
    assert orientation in corners[bright[0]]


def test_a_label_drawn_on_the_upright_image_fits_it(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.arange(8, dtype=np.uint8).reshape(2, 4)
    upright = np.rot90(stored, -1)
    image_path = saved(tmp_path / "image.png", Image.fromarray(stored), exif=exif)
    label_path = saved(tmp_path / "label.png", Image.fromarray(np.ascontiguousarray(upright)))
    image, label = read_pair(image_path, label_path)
    assert np.array_equal(image[..., 0], label)
    assert np.array_equal(label, upright)


def test_a_label_of_the_stored_rows_keeps_the_image_as_stored(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.arange(8, dtype=np.uint8).reshape(2, 4)
    image_path = saved(tmp_path / "image.png", Image.fromarray(stored), exif=exif)
    image, label = read_pair(image_path, saved(tmp_path / "label.png", Image.fromarray(stored)))
    assert np.array_equal(image[..., 0], label)
    assert np.array_equal(label, stored)


def test_label_ids_are_grey_values_or_palette_indices(tmp_path):
    ids = np.array([[0, 1, 2], [10, 255, 3]], np.uint8)
    grey = saved(tmp_path / "grey.png", Image.fromarray(ids))
    coloured = Image.fromarray(ids)
    coloured.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    for path in (grey, saved(tmp_path / "palette.png", coloured)):
        label = read_label(path)
        assert label.dtype == np.uint8
        assert np.array_equal(label, ids)


@pytest.mark.parametrize(
    ("bits", "row", "ids"),
    [(1, b"\x00\x50", [0, 1, 0, 1]), (2, b"\x00\x1b", [0, 1, 2, 3]), (4, b"\x00\x01\x2f", [0, 1, 2, 15])],
)
def test_labels_of_few_bits_keep_their_ids(tmp_path, bits, row, ids):
    assert read_label(raw_png(tmp_path / "a.png", bits, 4, 1, row)).tolist() == [ids]


def test_16_bit_label_is_accepted_up_to_255(tmp_path):
    ids = np.array([[0, 18, 255]], np.uint16)
    assert read_label(saved(tmp_path / "a.png", Image.fromarray(ids))).tolist() == [[0, 18, 255]]
    with pytest.raises(DataError, match=r"b\.png: holds values 0\.\.7000 but ids end at 255"):
        read_label(saved(tmp_path / "b.png", Image.fromarray(np.array([[0, 7000]], np.uint16))))


def test_colour_label_is_refused(tmp_path, rgb):
    with pytest.raises(
        DataError, match=r"a\.png: has mode RGB, not class ids; a label is an 8-bit grey or palette PNG"
    ):
        read_label(saved(tmp_path / "a.png", Image.fromarray(rgb)))


def test_jpeg_label_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.jpg: is a JPEG, whose compression changes class ids"):
        read_label(saved(tmp_path / "a.jpg", Image.new("L", (8, 8))))


@pytest.mark.parametrize("read", [read_image, read_label])
class TestUnreadableFiles:
    def test_missing(self, tmp_path, read):
        with pytest.raises(DataError, match=r"none\.png: no such file; check the name"):
            read(tmp_path / "none.png")

    def test_folder(self, tmp_path, read):
        with pytest.raises(DataError, match=f"{tmp_path.name}: is a folder"):
            read(tmp_path)

    def test_forbidden(self, monkeypatch, tmp_path, read):
        def refuse(path, mode):
            raise PermissionError(13, "Permission denied")

        (tmp_path / "a.png").touch()
        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=r"a\.png: cannot be opened; check its permissions"):
            read(tmp_path / "a.png")

    @pytest.mark.parametrize("content", [b"", b"not an image"])
    def test_no_image(self, tmp_path, read, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png: is empty or not in a known image format"):
            read(tmp_path / "a.png")

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
    def test_truncated(self, tmp_path, read, name):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        path = saved(tmp_path / name, Image.fromarray(noise))
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(DataError, match=rf"{name}: is damaged or incomplete"):
            read(path)

    def test_decompression_bomb(self, monkeypatch, tmp_path, read):
        path = saved(tmp_path / "a.png", Image.new("L", (10, 10)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(DataError, match=r"a\.png: is too large to decode safely.*tiles"):
            read(path)

    def test_too_little_memory(self, monkeypatch, tmp_path, read):
        def load(self):
            raise MemoryError

        path = saved(tmp_path / "a.png", Image.new("L", (10, 10)))
        monkeypatch.setattr(Image.Image, "load", load)
        monkeypatch.setattr(PngImageFile, "load", load)
        with pytest.raises(DataError, match=r"a\.png: there is not enough memory to read it"):
            read(path)

    def test_too_little_memory_to_turn_it(self, monkeypatch, tmp_path, read):
        def transpose(image):
            raise MemoryError

        monkeypatch.setattr(ImageOps, "exif_transpose", transpose)
        with pytest.raises(DataError, match="there is not enough memory"):
            read(saved(tmp_path / "a.png", Image.new("L", (10, 10))))

    def test_pipes_and_devices(self, tmp_path, read):
        os.mkfifo(tmp_path / "pipe.png")
        for path in (tmp_path / "pipe.png", Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(DataError, match=f"{path.name}: cannot be read .it is not a regular file but a pipe"):
                read(path)

    def test_too_many_open_files(self, monkeypatch, tmp_path, read):
        def refuse(path, mode):
            raise OSError(24, "Too many open files")

        (tmp_path / "a.png").touch()
        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=r"a\.png: cannot be read \(Too many open files\)"):
            read(tmp_path / "a.png")

    def test_a_nul_in_the_name(self, read):
        with pytest.raises(DataError, match="no such file"):
            read("a\0.png")

    def test_no_pixels(self, tmp_path, read):
        with pytest.raises(DataError, match=r"a\.png: is empty or not in a known image format"):
            read(raw_png(tmp_path / "a.png", 8, 0, 3, b"\x00\x00\x00"))


def test_label_map_keeps_ids_and_palette(tmp_path):
    ids = np.array([[0, 1, 2, 255]], np.uint8)
    palette = np.array([[1, 2, 3], [40, 50, 60], [250, 0, 9]], np.uint8)
    path = tmp_path / "new" / "folder" / "label.png"
    write_png(path, ids, palette)
    assert np.array_equal(read_label(path), ids)
    assert read_image(path).tolist() == [[[1, 2, 3], [40, 50, 60], [250, 0, 9], [0, 0, 0]]]


def test_label_map_of_more_classes_than_a_palette_holds(tmp_path):
    ids = np.array([[0, 255, 256, 299]])
    write_png(tmp_path / "a.png", ids, np.zeros((300, 3), np.uint8))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == ids.tolist()


@pytest.mark.parametrize("wrap", [np.asarray, Image.fromarray])
def test_picture_survives_writing(tmp_path, rgb, wrap):
    write_png(tmp_path / "a.png", wrap(rgb))
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_unwritable_folder_is_named(tmp_path, rgb):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/a\.png: cannot be written .*choose a folder"):
        write_png(tmp_path / "file" / "a.png", rgb)


def test_a_failed_write_leaves_the_old_file(monkeypatch, tmp_path, rgb):
    write_png(tmp_path / "a.png", rgb)

    def fill_the_disk(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(DataError, match=r"a\.png: cannot be written \(No space left on device\)"):
        write_png(tmp_path / "a.png", rgb // 2)
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
