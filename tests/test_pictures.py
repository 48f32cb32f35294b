import numpy as np
import pytest
from PIL import ImageDraw

from psp_fast.data.palette import default_palette
from psp_fast.error_pictures import panels
from psp_fast.pictures import colourise, comparison, overlay, present_classes

CLASSES = ["sky", "road", "tree"]
PALETTE = np.array([[0, 0, 200], [200, 0, 0], [0, 200, 0]], np.uint8)


def colours(picture):
    return {tuple(colour) for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0).tolist()}


def test_colourise_draws_ignored_pixels_black():
    label = np.array([[0, 2, 255], [1, 77, 0]], np.uint8)
    expected = [[[0, 0, 200], [0, 200, 0], [0, 0, 0]], [[200, 0, 0], [0, 0, 0], [0, 0, 200]]]
    assert colourise(label, PALETTE).tolist() == expected


def test_overlay_blends_at_the_size_of_the_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    label = rng.choice([0, 1, 255], (200, 300)).astype(np.uint8)
    picture = np.asarray(overlay(image, label, CLASSES, PALETTE, alpha=0.25))
    assert picture.shape[1] == 300
    assert picture.shape[0] > 200
    expected = 0.75 * image + 0.25 * colourise(label, PALETTE)
    assert np.abs(picture[:200] - expected).max() <= 1


def test_legend_shows_the_classes_present_and_no_others():
    label = np.zeros((200, 300), np.uint8)
    label[:50] = 1
    label[:2, :9] = 255
    image = np.full((200, 300, 3), 255, np.uint8)
    shown = colours(np.asarray(overlay(image, label, CLASSES, PALETTE))[200:])
    assert {(0, 0, 200), (200, 0, 0), (0, 0, 0)} <= shown
    assert (0, 200, 0) not in shown


def test_legend_is_sorted_by_share():
    label = np.repeat(np.array([[1, 2, 2, 2, 0, 0]], np.uint8), 40, axis=0).repeat(40, axis=1)
    legend = np.asarray(overlay(np.zeros((*label.shape, 3), np.uint8), label, CLASSES, PALETTE))[40:]
    first = [np.argwhere((legend == PALETTE[i]).all(axis=2))[:, ::-1].min(axis=0).tolist() for i in (2, 0, 1)]
    assert first == sorted(first)


def test_legend_names_and_shares_are_drawn(monkeypatch):
    texts = drawn_texts(monkeypatch)
    label = np.zeros((100, 1000), np.uint8)
    label[0, :4] = 2
    label[50:] = 255
    overlay(np.zeros((100, 1000, 3), np.uint8), label, CLASSES, PALETTE)
    assert texts == ["sky", "50.0 %", "tree", "<0.1 %", "ignored", "50.0 %"]


def drawn_texts(monkeypatch):
    texts = []
    original = ImageDraw.ImageDraw.text

    def record(self, place, text, *rest, **options):
        if text:
            texts.append(text)
        return original(self, place, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


def test_a_long_legend_ends_with_what_it_leaves_out(monkeypatch):
    texts = drawn_texts(monkeypatch)
    label = np.arange(150, dtype=np.uint8).reshape(10, 15).repeat(30, 0).repeat(30, 1)
    names = [f"class number {i} of a data set with long names" for i in range(150)]
    picture = overlay(np.zeros((300, 450, 3), np.uint8), label, names, default_palette(150))
    assert picture.height <= 300 + 150 + 20
    shown = [text for text in texts if text.startswith("class")]
    assert 6 <= len(shown) < 150
    assert all(text.endswith("...") for text in shown)
    assert texts[-1] == f"and {150 - len(shown)} more"


@pytest.mark.parametrize(
    ("shape", "drawn"), [((1, 1), (256, 256)), ((2, 100), (4, 200)), ((129, 5), (129, 5)), ((3000, 2), (3000, 2))]
)
def test_tiny_and_odd_images(shape, drawn):
    image, label = np.full((*shape, 3), 100, np.uint8), np.ones(shape, np.uint8)
    picture = np.asarray(overlay(image, label, CLASSES, PALETTE))
    assert (picture[: drawn[0], : drawn[1]] == [150, 50, 50]).all()
    assert picture.shape[0] > drawn[0]
    legend = picture[drawn[0] :]
    assert (legend == PALETTE[1]).all(axis=2).any()
    assert (legend[:, -1] == 255).all()  # nothing is cut off on the right


def test_the_legend_grows_with_the_image():
    swatches = []
    for side in (500, 3000):
        label = np.zeros((side, side), np.uint8)
        legend = np.asarray(overlay(np.zeros((side, side, 3), np.uint8), label, CLASSES, PALETTE))[side:]
        swatches.append((legend == PALETTE[0]).all(axis=2).sum())
    assert swatches[1] > 20 * swatches[0]


def test_comparison_is_a_grid_of_images_and_label_maps(monkeypatch):
    texts = drawn_texts(monkeypatch)
    image = np.full((64, 96, 3), 77, np.uint8)
    truth = np.zeros((64, 96), np.uint8)
    truth[:, 48:] = 255
    prediction = np.full((64, 96), 2, np.uint8)
    titles = ["image", "truth", "PSPNet, mIoU 61.2 %"]
    picture = comparison(titles, [[image, truth, prediction]] * 2, CLASSES, PALETTE)
    pixels = np.asarray(picture)
    assert texts == [*titles, "tree", "sky", "ignored"]  # by share
    sizes = {
        colour: (pixels == colour).all(axis=2).sum() for colour in [(77,) * 3, (0, 0, 200), (0, 200, 0), (0, 0, 0)]
    }
    cell = 3 * 64 * 3 * 96  # enlarged by 320 // 96
    assert sizes[(77,) * 3] == pytest.approx(2 * cell, abs=20)  # and pixels of the text
    assert sizes[(0, 0, 200)] == pytest.approx(cell, abs=300)  # and a swatch
    assert sizes[(0, 0, 0)] == pytest.approx(cell, abs=300)
    assert sizes[(0, 200, 0)] == pytest.approx(2 * cell, abs=300)


def test_comparison_fits_large_and_unlike_images():
    rows = []
    for height, width in [(1000, 700), (30, 900), (5, 5)]:
        image = np.full((height, width, 3), 77, np.uint8)
        rows.append([image, np.ones((height, width), np.uint8)])
    picture = comparison(
        ["image", "a prediction with a title that is much too long for its column"], rows, CLASSES, PALETTE
    )
    assert picture.width == 320 + 320 + 3 * 8
    assert (77, 77, 77) in colours(picture)
    assert (200, 0, 0) in colours(picture)


def test_comparison_keeps_classes_pure_when_reducing():
    label = np.random.default_rng(0).choice([0, 1, 2], (700, 900)).astype(np.uint8)
    picture = comparison(["truth"], [[label]], CLASSES, PALETTE).crop((8, 32, 328, 32 + 249))
    assert colours(picture) == {tuple(colour) for colour in PALETTE.tolist()}


def test_comparison_without_label_maps_has_no_legend(monkeypatch):
    texts = drawn_texts(monkeypatch)
    comparison(["image"], [[np.zeros((9, 9, 3), np.uint8)]], CLASSES, PALETTE)
    assert texts == ["image"]


def test_the_legend_of_a_long_narrow_image_stays_small():
    for shape in ((40, 20000), (20000, 40)):
        image, label = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
        picture = overlay(image, label, CLASSES, PALETTE)
        assert picture.height - shape[0] < 60, "one line"
        assert picture.width <= max(shape[1], 300)


@pytest.mark.parametrize("shape", [(4, 1_000_000), (1_000_000, 4)])
def test_a_legend_that_would_be_most_of_the_picture_is_left_out(shape):
    image, label = np.full((*shape, 3), 100, np.uint8), np.ones(shape, np.uint8)
    picture = overlay(image, label, CLASSES, PALETTE)
    assert picture.size == shape[::-1]
    assert (np.asarray(picture) == (150, 50, 50)).all()


@pytest.mark.parametrize("count", [256, 300])
def test_more_classes_than_a_palette_file_holds(count):
    names, palette = [f"class {i}" for i in range(count)], default_palette(count)
    label = np.full((64, 64), 255, np.int64)
    label[:32] = count - 1
    assert colours(colourise(label, palette)) == {tuple(palette[i].tolist()) for i in (255, count - 1)}
    entries = present_classes(label, names, palette)
    assert {entry.name for entry in entries} == {"class 255", names[-1]}
    overlay(np.zeros((64, 64, 3), np.uint8), label, names, palette)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_drawn(channels):
    image, label = np.full((64, 96, channels), 100, np.uint8), np.ones((64, 96), np.uint8)
    image[..., 3:] = 9
    assert (150, 50, 50) in colours(overlay(image, label, CLASSES, PALETTE))
    assert (100, 100, 100) in colours(comparison(["image", "truth"], [[image, label]], CLASSES, PALETTE))
    assert np.asarray(panels(image, label, label, PALETTE)["image"])[0, 0].tolist() == [100, 100, 100]
