"""Images of other than three channels, and files whose bands are not what they seem."""

import struct

import numpy as np
import pytest
from PIL import Image

from psp_fast.data.images import read_image, read_pair
from psp_fast.data.lists import ListDataset
from psp_fast.data.transforms import train_transform
from psp_fast.errors import DataError

BANDS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2  # TIFF's kinds of a fourth band


def tiff(path, bands, kind=ALPHA):
    """Four 8-bit bands with the fourth tagged as `kind`."""
    Image.fromarray(bands).save(path)
    content, tag = path.read_bytes(), struct.pack("<HHI", 338, 3, 1)
    at = content.index(tag) + len(tag)
    path.write_bytes(content[:at] + struct.pack("<H", kind) + content[at + 2 :])
    assert Image.open(path).tag_v2[338] == (kind,)
    return path


def many_bands(path, count, bits=16):
    """The header of a TIFF of `count` bands, as satellites have them."""
    tags = [(256, 1), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8), (277, count), (278, 1), (279, 2 * count)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.jp2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_infrared_tagged_as_alpha_is_never_blended(tmp_path, name, channels):
    Image.fromarray(BANDS).save(tmp_path / name, **({"irreversible": False} if name == "a.jp2" else {}))
    with pytest.raises(DataError, match=rf"{name}: is a .* of 4 bands.*not blended; set model\.in_channels to 4"):
        read_image(tmp_path / name, channels)
    assert np.array_equal(read_image(tmp_path / name, 4), BANDS)


def test_grey_and_a_second_band_are_not_blended_either(tmp_path):
    Image.merge("LA", [Image.fromarray(BANDS[..., 0]), Image.fromarray(BANDS[..., 1])]).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: is a TIFF of 2 bands.*not blended"):
        read_image(tmp_path / "a.tif")


def test_an_opaque_tiff_is_its_colours(tmp_path):
    opaque = BANDS.copy()
    opaque[..., 3] = 255
    assert np.array_equal(read_image(tiff(tmp_path / "a.tif", opaque)), opaque[..., :3])


def test_a_fourth_band_that_is_tagged_as_nothing(tmp_path):
    path = tiff(tmp_path / "a.tif", BANDS, UNSPECIFIED)
    assert np.array_equal(read_image(path), BANDS[..., :3])
    with pytest.raises(DataError, match=r"its 4 bands are read as RGB.*fourth tagged alpha"):
        read_image(path, 4)


def test_bands_are_not_divided_by_infrared(tmp_path):
    with pytest.raises(DataError, match="tagged as premultiplied alpha, by which the others would be divided"):
        read_image(tiff(tmp_path / "a.tif", BANDS, PREMULTIPLIED), 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_four_channels_need_four_bands(tmp_path, mode):
    Image.new(mode, (5, 6)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"bands are read as {mode}, but model\.in_channels is 4"):
        read_image(tmp_path / "a.tif", 4)


def test_a_transparent_png_has_four_bands_as_they_are(tmp_path):
    Image.fromarray(BANDS).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 4), BANDS)


def test_grey(tmp_path):
    Image.fromarray(BANDS[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png", 1), BANDS[..., :1])
    Image.fromarray(BANDS[..., :3]).save(tmp_path / "rgb.png")
    luminance = BANDS[..., :3] @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(tmp_path / "rgb.png", 1)[..., 0] - luminance).max() <= 1
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "16.png")
    assert read_image(tmp_path / "16.png", 1).tolist() == [[[0], [1], [255]]]


@pytest.mark.parametrize(("count", "bits"), [(8, 16), (2, 32)])
def test_a_tiff_of_many_bands_is_named_as_such(tmp_path, count, bits):
    with pytest.raises(DataError, match=rf"a\.tif: is a TIFF of {count} bands of {bits} bits.*save one, three or four"):
        read_image(many_bands(tmp_path / "a.tif", count, bits))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_tiff_whose_tags_are_cut_off_is_damaged(tmp_path):
    path = many_bands(tmp_path / "a.tif", 8)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"a\.tif: is a TIFF that is damaged or incomplete"):
        read_image(path)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_data_set_and_its_augmentation_keep_the_channels(tmp_path, channels):
    bands = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    image, label = tiff(tmp_path / "a.tif", bands), Image.fromarray(bands[..., 0] % 2)
    if channels == 1:
        Image.fromarray(bands[..., 0]).save(image)
    label.save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.tif a.png\n")
    dataset = ListDataset(tmp_path, "list.txt", ["even", "odd"], channels=channels)
    pixels, ids = dataset.load(0)
    assert np.array_equal(pixels, bands[..., :channels])
    assert np.array_equal(read_pair(tmp_path / "a.tif", tmp_path / "a.png", channels)[0], pixels)
    transform = train_transform("semseg", (33, 45), degrees=45, mean=(1.0,) * channels, std=(2.0,) * channels)
    for seed in range(12):
        first, _ = transform(pixels, ids, np.random.default_rng(seed))
        assert first.shape == (channels, 33, 45) and first.dtype == np.float32
        # Every channel goes the way of an RGB image's: no channel weights another.
        for i in range(channels):
            rgb = train_transform("semseg", (33, 45), degrees=45, mean=(1.0,) * 3, std=(2.0,) * 3)
            alone, _ = rgb(np.repeat(pixels[..., i : i + 1], 3, axis=2), ids, np.random.default_rng(seed))
            assert np.abs(first[i] - alone[0]).max() <= 0.5
