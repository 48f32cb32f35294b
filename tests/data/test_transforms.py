import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from psp_fast.data import transforms as T
from psp_fast.data.transforms import Window, train_transform
from psp_fast.errors import ConfigError

MEAN, STD = np.array(T.MEAN)[:, None, None], np.array(T.STD)[:, None, None]
SIZES = [(37, 53), (20, 26), (11, 100), (74, 106), (90, 60), (1, 1), (3, 300)]  # to which 37x53 is resized
PRESETS = ["semseg", "mmseg"]


def noise(height=37, width=53, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(
        0, 11, (height, width), dtype=np.uint8
    )


def patches(height, width, side):
    """Squares of one class each, the grey of class k being 20 k + 10."""
    ids = np.random.default_rng(1).integers(0, 12, (-(-height // side), -(-width // side)))
    label = ids.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.uint8)
    return np.repeat((20 * label + 10)[:, :, None], 3, axis=2), label


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].double()


def interpolated(image, size, **options):
    return F.interpolate(tensor(image), size, **options)[0].permute(1, 2, 0).numpy()


def restored(image):
    """Normalised (3, H, W) back to grey levels."""
    return image * STD + MEAN


def test_constants_are_imagenets():
    assert np.allclose(T.MEAN, [123.675, 116.28, 103.53])
    assert np.allclose(T.STD, [58.395, 57.12, 57.375])


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_equals_interpolate(size):
    image, _ = noise()
    expected = interpolated(image, size, mode="bilinear", align_corners=False, antialias=False)
    assert np.abs(T.resize_bilinear(image, size) - expected).max() <= 0.501


@pytest.mark.parametrize("size", SIZES)
def test_nearest_equals_the_floor_of_the_scaled_index(size):
    _, label = noise()
    expected = F.interpolate(torch.from_numpy(label)[None, None], size, mode="nearest")[0, 0].numpy()
    assert np.array_equal(T.resize_nearest(label, size), expected)


@pytest.mark.parametrize("size", [(20, 26), (37, 53), (90, 60)])
@pytest.mark.parametrize("window", [Window(0, 0, 5, 7), Window(3, 11, 20, 26), Window(19, 0, 20, 26)])
def test_a_window_is_part_of_the_whole(size, window):
    image, label = noise()
    part = slice(window.top, window.bottom), slice(window.left, window.right)
    assert np.array_equal(T.resize_bilinear(image, size, window), T.resize_bilinear(image, size)[part])
    assert np.array_equal(T.resize_nearest(label, size, window), T.resize_nearest(label, size)[part])


@pytest.mark.parametrize("shape", [(12, 17), (1, 1), (1, 9), (2, 3), (3, 3)])
def test_blur_is_the_5x5_binomial_with_mirrored_border(shape):
    image, _ = noise(*shape)
    taps = np.array([1, 4, 6, 4, 1]) / 16
    expected = np.zeros((*shape, 3))
    rows = mirrored(np.arange(-2, shape[0] + 2), shape[0])
    columns = mirrored(np.arange(-2, shape[1] + 2), shape[1])
    wide = image[rows[:, None], columns].astype(float)
    for dy in range(5):
        for dx in range(5):
            expected += taps[dy] * taps[dx] * wide[dy : dy + shape[0], dx : dx + shape[1]]
    assert np.abs(T.gaussian_blur(image) - expected).max() <= 0.5


def mirrored(index, length):
    """Indices reflected about the first and last pixel, as OpenCV's BORDER_REFLECT_101."""
    period = max(2 * length - 2, 1)
    return np.minimum(index % period, -index % period)


def test_blur_keeps_white_and_black():
    image = np.zeros((9, 9, 3), np.uint8)
    image[:, 5:] = 255
    blurred = T.gaussian_blur(image)
    assert blurred[:, 0].max() == 0
    assert blurred[:, -1].min() == 255


@pytest.mark.parametrize("degrees", [-10.0, 3.0, 10.0, 90.0])
def test_rotation_equals_grid_sample(degrees):
    image, label = noise(40, 60)
    size = (50, 70)
    whole = Window(0, 0, *size)
    turned, turned_label = T.rotated(image, label, size, whole, degrees, T.MEAN)

    turn = np.deg2rad(degrees)
    ys, xs = np.mgrid[0:50, 0:70]
    dx, dy = xs + 0.5 - 35, ys + 0.5 - 25
    source_x = np.cos(turn) * dx + np.sin(turn) * dy + 35
    source_y = -np.sin(turn) * dx + np.cos(turn) * dy + 25
    grid = torch.from_numpy(np.stack([source_x / 35 - 1, source_y / 25 - 1], axis=-1))[None]
    expected = F.grid_sample(tensor(T.resize_bilinear(image, size)), grid, padding_mode="border", align_corners=False)[
        0
    ].permute(1, 2, 0)
    inside = (source_x > 0) & (source_x < 70) & (source_y > 0) & (source_y < 50)

    assert np.abs(turned[inside] - expected.numpy()[inside]).max() <= 1.01  # Pillow cuts fractions off
    assert np.unique(turned[~inside], axis=0).tolist() == [[124, 116, 104]]
    resized_label = T.resize_nearest(label, size)
    nearest = resized_label[source_y[inside].astype(int), source_x[inside].astype(int)]
    assert (turned_label[inside] == nearest).mean() > 0.999  # Pillow works in 16-bit fractions
    assert (turned_label[~inside] == 255).mean() > 0.99


@pytest.mark.parametrize(
    "window", [Window(0, 0, 9, 9), Window(10, 20, 30, 50), Window(45, 65, 50, 70), Window(0, 69, 50, 70)]
)
def test_a_rotated_window_is_part_of_the_whole(window):
    image, label = noise(40, 60)
    size = (50, 70)
    part = slice(window.top, window.bottom), slice(window.left, window.right)
    whole = T.rotated(image, label, size, Window(0, 0, *size), 8.0, T.MEAN)
    image, label = T.rotated(image, label, size, window, 8.0, T.MEAN)
    assert np.abs(image.astype(int) - whole[0][part]).max() <= 1
    assert (label == whole[1][part]).mean() > 0.99


def test_a_window_that_rotation_leaves_empty_is_filled():
    image, label = noise(100, 4)
    image, label = T.rotated(image, label, (100, 4), Window(0, 0, 10, 4), 10.0, (1.0, 2.0, 3.0))
    assert np.unique(image.reshape(-1, 3), axis=0).tolist() == [[1, 2, 3]]
    assert np.unique(label).tolist() == [255]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(48, 64), (1, 1), (7, 300), (200, 30)])
@pytest.mark.parametrize("crop", [(40, 56), (33, 473)])
def test_output_shapes_and_types(preset, shape, crop):
    image, label = noise(*shape)
    for seed in range(4):
        x, y = train_transform(preset, crop)(image, label, np.random.default_rng(seed))
        assert x.shape == (3, *crop)
        assert y.shape == crop
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert np.isfinite(x).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_generator_alone_decides(preset):
    image, label = noise()
    transform = pickle.loads(pickle.dumps(train_transform(preset, (30, 30))))
    first, again, other = (transform(image, label, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_inputs_are_left_alone(preset):
    image, label = noise()
    before = image.copy(), label.copy()
    for seed in range(10):
        x, y = train_transform(preset, (30, 30))(image, label, np.random.default_rng(seed))
        x += 1
        y += 1
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_labels_are_never_interpolated(preset):
    image, label = noise(60, 60)
    label = np.where(label % 2, 200, 3).astype(np.uint8)
    seen = set()
    for seed in range(20):
        seen |= set(np.unique(train_transform(preset, (50, 50))(image, label, np.random.default_rng(seed))[1]))
    assert seen == {3, 200, 255}


def test_semseg_image_and_label_stay_aligned():
    image, label = patches(120, 160, side=32)
    checked = 0
    for seed in range(30):
        x, y = train_transform("semseg", (90, 110))(image, label, np.random.default_rng(seed))
        same = np.zeros_like(y, dtype=bool)  # 5 pixels from any other patch, the reach of all steps at scale 2
        around = np.lib.stride_tricks.sliding_window_view(y, (11, 11))
        same[5:-5, 5:-5] = (around == y[5:-5, 5:-5, None, None]).all(axis=(2, 3))
        same &= y != 255
        levels = restored(x)[:, same]
        assert np.abs(levels - (20 * y[same] + 10)).max() <= 1.001  # Pillow cuts fractions off
        checked += same.sum()
    assert checked > 10_000


def test_mmseg_image_and_label_stay_aligned():
    height, width = 120, 160
    label = np.add.outer(np.arange(height) // 40, 3 * (np.arange(width) // 40)).astype(np.uint8)  # a 3x4 chequer
    image = np.zeros((height, width, 3), np.uint8)
    image[label % 2 == 1] = 255  # brightness, contrast and colour leave it lighter than black
    for seed in range(30):
        x, y = train_transform("mmseg", (90, 110))(image, label, np.random.default_rng(seed))
        valid = y != 255
        grey = restored(x).mean(axis=0)
        assert (grey[valid & (y % 2 == 1)].mean() - grey[valid & (y % 2 == 0)].mean()) > 50


@pytest.mark.parametrize("blur", [False, True])
def test_semseg_crops_or_mirrors_the_whole_image(blur):
    image, label = noise(30, 40)
    transform = train_transform("semseg", (20, 25), scale=(1, 1), degrees=0, blur=blur)
    wholes = [image, T.gaussian_blur(image)][: 1 + blur]
    places, mirrors, blurs = set(), set(), set()
    for seed in range(60):
        x, y = transform(image, label, np.random.default_rng(seed))
        found = [
            (top, left, mirror)
            for top in range(11)
            for left in range(16)
            for mirror in (1, -1)
            if np.array_equal(y, label[top : top + 20, left : left + 25][:, ::mirror])
        ]
        assert len(found) == 1
        top, left, mirror = found[0]
        crops = [whole[top : top + 20, left : left + 25][:, ::mirror].transpose(2, 0, 1) for whole in wholes]
        equal = [np.abs(restored(x) - crop).max() < 1e-3 for crop in crops]
        assert any(equal)
        blurs.add(equal.index(True))
        places.add((top, left))
        mirrors.add(mirror)
    assert mirrors == {1, -1}
    assert len(blurs) == len(wholes)
    assert {0, 10} <= {top for top, _ in places}
    assert {0, 15} <= {left for _, left in places}


def test_semseg_padding_is_centred_and_exactly_the_mean():
    image, label = noise(11, 12)
    transform = train_transform("semseg", (16, 21), scale=(1, 1), degrees=0)
    for seed in range(8):
        x, y = transform(image, label, np.random.default_rng(seed))
        inside = np.zeros((16, 21), bool)
        inside[2:13, 4:16] = True  # (16 - 11) // 2 above, (21 - 12) // 2 left
        assert not x[:, ~inside].any()
        assert np.abs(x[:, inside]).min() > 0
        assert (y[~inside] == 255).all()
        assert (y[inside] != 255).all()


def test_mmseg_padding_is_below_and_right_and_zero():
    image, label = noise(11, 12)
    x, y = train_transform("mmseg", (16, 21), scale=(1, 1))(image, label, np.random.default_rng(0))
    assert not x[:, 11:].any()
    assert not x[:, :, 12:].any()
    assert np.abs(x[:, :11, :12]).min() > 0
    assert np.array_equal(y == 255, ~np.pad(np.ones((11, 12), bool), ((0, 5), (0, 9))))


def test_semseg_scales_uniformly():
    label = np.zeros((100, 100), np.uint8)
    image = np.zeros((100, 100, 3), np.uint8)
    transform = train_transform("semseg", (200, 200), degrees=0, blur=False)
    sides = [np.sqrt((transform(image, label, np.random.default_rng(seed))[1] == 0).sum()) / 100 for seed in range(300)]
    assert 0.5 <= min(sides) < 0.52
    assert 1.98 < max(sides) <= 2
    assert abs(np.mean(sides) - 1.25) < 0.08


def test_semseg_rotates_and_blurs_half_of_the_images():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    label = np.zeros((41, 41), np.uint8)
    rotations = blurs = 0
    for seed in range(200):
        x, y = train_transform("semseg", (41, 41), scale=(1, 1))(image, label, np.random.default_rng(seed))
        rotations += (y == 255).any()
        blurs += restored(x)[0].max() < 100  # 36/256 of 255 remains at the centre
    assert 70 < rotations < 130
    assert 70 < blurs < 130


@pytest.mark.parametrize(
    ("shape", "base", "ratio", "expected"),
    [
        ((512, 2048), (2048, 512), 1.0, (512, 2048)),
        ((512, 683), (2048, 512), 1.5, (768, 1025)),  # the short side decides
        ((100, 1000), (2048, 512), 1.0, (205, 2048)),  # the long side decides
        ((1000, 100), (512, 2048), 1.0, (2048, 205)),
        ((30, 40), None, 0.5, (15, 20)),
        ((1, 300), None, 0.5, (1, 1)),
    ],
)
def test_mmseg_fits_images_into_the_base_scale(shape, base, ratio, expected):
    assert T.fit(shape, base, ratio) == expected


def test_mmseg_rejects_crops_that_one_class_dominates():
    label = np.zeros((60, 60), np.uint8)
    label[:20, :20] = 1  # few crops hold a quarter of it
    label[30:, 30:] = 255  # counts on neither side
    shares = {}
    for tries in (0, 10):
        windows = [T.varied_window(label, (20, 20), np.random.default_rng(seed), 0.75, tries) for seed in range(200)]
        crops = [label[w.top : w.bottom, w.left : w.right] for w in windows]
        shares[tries] = np.mean([not_dominated(crop) for crop in crops])
    assert shares[10] > 1 - (1 - shares[0]) ** 6 > shares[0] + 0.2


def not_dominated(crop):
    ids, counts = np.unique(crop[crop != 255], return_counts=True)
    return len(ids) > 1 and counts.max() < 0.75 * counts.sum()


def test_mmseg_takes_any_crop_when_all_are_dominated():
    label = np.full((30, 30), 4, np.uint8)
    _, y = train_transform("mmseg", (10, 10), scale=(1, 1))(
        np.zeros((30, 30, 3), np.uint8), label, np.random.default_rng(0)
    )
    assert (y == 4).all()
    ignored = np.full((30, 30), 255, np.uint8)
    assert T.varied_window(ignored, (10, 10), np.random.default_rng(0), 0.75, 10).height == 10


@pytest.mark.parametrize("preset", ["semseg", "mmseg"])
def test_mirroring_can_be_left_out(preset):
    image, label = noise(30, 40)
    for mirror, expected in ((False, {1}), (True, {1, -1})):
        transform = train_transform(preset, (30, 40), scale=(1, 1), mirror=mirror, degrees=0, cat_max_ratio=1)
        seen = [transform(image, label, np.random.default_rng(seed))[1] for seed in range(20)]
        assert {way for y in seen for way in (1, -1) if np.array_equal(y, label[:, ::way])} == expected


def test_mmsegs_largest_share_of_a_class_is_an_option():
    label = np.zeros((60, 60), np.uint8)
    label[:, 30:] = 1
    image = np.zeros((60, 60, 3), np.uint8)
    largest = {}
    for ratio in (0.6, 0.9):
        transform = train_transform("mmseg", (20, 20), scale=(1, 1), cat_max_ratio=ratio)
        crops = [transform(image, label, np.random.default_rng(seed))[1] for seed in range(100)]
        largest[ratio] = np.sort([max((y == 0).mean(), (y == 1).mean()) for y in crops])
    assert largest[0.6][50] < 0.6 < largest[0.9][50] < 0.9


class Drawn:
    """Stands in for a generator: gives out prepared decisions."""

    def __init__(self, **values):
        self.values = values
        self.decisions = iter(
            [
                "brightness" in values,
                "contrast" in values,
                values.get("first", False),
                "saturation" in values,
                "hue" in values,
            ]
        )
        self.uniforms = iter([values[k] for k in ("brightness", "contrast", "saturation", "hue") if k in values])

    def random(self):
        return 0.0 if next(self.decisions) else 1.0

    def uniform(self, low, high):
        value = next(self.uniforms)
        assert low <= value <= high
        return value


@pytest.mark.parametrize("first", [True, False])
def test_brightness_and_contrast(first):
    image, _ = noise()
    result = T.distort_colours(image, Drawn(brightness=-20.0, contrast=1.4, first=first))
    expected = np.clip(np.clip(image.astype(float) - 20, 0, 255) * 1.4, 0, 255)
    assert np.abs(result - expected).max() <= 0.5


def test_saturation_keeps_value_and_grey():
    image = np.array([[[200, 100, 100], [80, 80, 80], [10, 200, 200]]], np.uint8)
    result = T.distort_colours(image, Drawn(saturation=0.5)).astype(int)
    assert np.abs(result - [[[200, 150, 150], [80, 80, 80], [105, 200, 200]]]).max() <= 1


def test_hue_is_in_half_degrees():
    image = np.array([[[200, 0, 0], [0, 0, 200], [90, 90, 90]]], np.uint8)
    result = T.distort_colours(image, Drawn(hue=15.0)).astype(int)  # by 30 degrees: red to orange, blue to violet
    assert np.abs(result - [[[200, 100, 0], [100, 0, 200], [90, 90, 90]]]).max() <= 4


def test_contrast_before_or_after_colour():
    image = np.array([[[250, 125, 125]]], np.uint8)
    first = T.distort_colours(image, Drawn(contrast=1.5, saturation=0.5, first=True)).astype(int)
    last = T.distort_colours(image, Drawn(contrast=1.5, saturation=0.5)).astype(int)
    assert np.abs(first - [[[255, 221, 221]]]).max() <= 1  # (375, 187, 187) is clipped, then half as saturated
    assert last.tolist() == [[[255, 255, 255]]]  # (250, 188, 188), then clipped


def test_no_distortion_is_the_identity():
    image, _ = noise()
    assert np.array_equal(T.distort_colours(image, Drawn()), image)


def test_own_mean_and_std():
    image, _ = noise()
    options = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0)}
    expected = (image - np.array(options["mean"])) / np.array(options["std"])
    np.testing.assert_allclose(T.normalise(image, **options), expected.transpose(2, 0, 1), atol=1e-4)
    for preset in PRESETS:
        transform = train_transform(preset, (37, 53), **options)
        assert (transform.mean, transform.std) == (options["mean"], options["std"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "caffe"}, "no augmentation preset 'caffe'; choose 'semseg' or 'mmseg'"),
        ({"crop": (0, 5)}, "crop must be at least 1x1 pixels but is 0x5"),
        ({"scale": (2.0, 0.5)}, r"scale range must be \(low, high\) with 0 < low <= high but is \(2\.0, 0\.5\)"),
        ({"scale": (0.0, 1.0)}, "scale range"),
    ],
)
def test_wrong_options_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        train_transform(**{"preset": "semseg", "crop": (5, 5)} | arguments)
