"""Training and evaluation transforms: the augmentation of semseg and of mmseg, on numpy and Pillow.

Images are resized bilinearly without anti-aliasing between half-pixel centres and labels by nearest index, as OpenCV
does, which the published results rest on. The crop is chosen first; only its window is resized, rotated and blurred.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from psp_fast.data.base import IGNORE, Transform
from psp_fast.errors import ConfigError
from psp_fast.normalisation import MEAN, STD, Colour

_BAND = 16  # rows resized at once, so that the work stays in the cache
_HUE_STEPS = 256 / 180  # Pillow divides the circle by 256, OpenCV, whose units the options have, by 180


def train_transform(
    preset: Literal["semseg", "mmseg"],
    crop: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    mirror: bool = True,
    degrees: float = 10.0,
    blur: bool = True,
    base_scale: tuple[int, int] | None = None,
    cat_max_ratio: float = 0.75,
    mean: Colour = MEAN,
    std: Colour = STD,
) -> Transform:
    """The augmentation of a preset, ending in crops of `crop` (height, width).

    scale: range of the random scale, relative to the image (semseg) or to `base_scale` (mmseg).
    mirror: whether half of the images are mirrored.
    degrees, blur: semseg only; largest rotation either way (0: none), and whether half of the images are blurred.
    base_scale: mmseg only; the (long, short) sides the image is fitted into before scaling. None: the image's own.
    cat_max_ratio: mmseg only; crops in which a class has this share of the labelled pixels or more are drawn again.
    mean, std: in 0..255, one number per channel of the images: RGB, or with semseg any other.
    """
    if min(crop) < 1:
        raise ConfigError(f"the crop must be at least 1x1 pixels but is {crop[0]}x{crop[1]} (height x width)")
    if not 0 < scale[0] <= scale[1]:
        raise ConfigError(f"the scale range must be (low, high) with 0 < low <= high but is {tuple(scale)}")
    if preset == "semseg":
        return SemsegTrain(crop, scale, mirror, degrees, blur, mean, std)
    if preset == "mmseg":
        return MmsegTrain(crop, scale, mirror, base_scale, cat_max_ratio, mean, std)
    raise ConfigError(f"there is no augmentation preset {preset!r}; choose 'semseg' or 'mmseg'")


class Window(NamedTuple):
    """A rectangle of pixels: rows top..bottom-1, columns left..right-1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def grow(self, margin: int, size: tuple[int, int]) -> "Window":
        """`margin` pixels more on each side, as far as an image of `size` (height, width) goes."""
        top, left, bottom, right = self
        return Window(
            max(top - margin, 0), max(left - margin, 0), min(bottom + margin, size[0]), min(right + margin, size[1])
        )

    def within(self, outer: "Window") -> tuple[slice, slice]:
        """Index of this window in an array that holds `outer`."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


@dataclass(frozen=True)
class SemsegTrain:
    """Random scale, rotation (p 0.5), blur (p 0.5), mirror (p 0.5), crop with centred padding, normalisation."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    degrees: float = 10.0
    blur: bool = True
    mean: Colour = MEAN
    std: Colour = STD

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        ratio = rng.uniform(*self.scale)
        size = max(round(image.shape[0] * ratio), 1), max(round(image.shape[1] * ratio), 1)
        angle = rng.uniform(-self.degrees, self.degrees) if rng.random() < 0.5 else 0.0
        blurred = self.blur and rng.random() < 0.5
        mirrored = rng.random() < 0.5 and self.mirror
        window = random_window(size, self.crop, rng)

        margin = window.grow(2 if blurred else 0, size)
        if angle:
            image, label = rotated(image, label, size, margin, angle, self.mean)
        else:
            image, label = resize_bilinear(image, size, margin), resize_nearest(label, size, margin)
        if blurred:
            image = gaussian_blur(image)
        image, label = image[window.within(margin)], label[window.within(margin)]
        if mirrored:
            image, label = image[:, ::-1], label[:, ::-1]
        above, left = (self.crop[0] - window.height) // 2, (self.crop[1] - window.width) // 2
        return padded(normalise(image, self.mean, self.std), label, self.crop, above, left)


@dataclass(frozen=True)
class MmsegTrain:
    """Random scale of a base scale, crop without a dominating class, mirror (p 0.5), colour distortion, normalisation,
    padding below and on the right."""

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    base_scale: tuple[int, int] | None = None
    cat_max_ratio: float = 0.75
    mean: Colour = MEAN
    std: Colour = STD
    tries: int = 10

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        size = fit(image.shape[:2], self.base_scale, rng.uniform(*self.scale))
        window = varied_window(resize_nearest(label, size), self.crop, rng, self.cat_max_ratio, self.tries)
        image, label = resize_bilinear(image, size, window), resize_nearest(label, size, window)
        if rng.random() < 0.5 and self.mirror:
            image, label = image[:, ::-1], label[:, ::-1]
        image = distort_colours(image, rng)
        return padded(normalise(image, self.mean, self.std), label, self.crop, 0, 0)


def resize_bilinear(image: np.ndarray, size: tuple[int, int], window: Window | None = None) -> np.ndarray:
    """Resize (H, W, C) uint8 to `size` (height, width) without anti-aliasing, and return the `window` of the result."""
    window = window or Window(0, 0, *size)
    if size == image.shape[:2]:
        return image[window.top : window.bottom, window.left : window.right]
    above, below, down = _neighbours(image.shape[0], size[0], window.top, window.bottom)
    left, right, across = _neighbours(image.shape[1], size[1], window.left, window.right)
    columns = slice(left[0], right[-1] + 1)
    result = np.empty((window.height, window.width, image.shape[2]), np.uint8)
    for start in range(0, window.height, _BAND):
        band = slice(start, start + _BAND)
        rows = image[above[band], columns].astype(np.float32)
        rows += (image[below[band], columns] - rows) * down[band, None, None]
        pixels = rows.take(left - left[0], axis=1)
        step = rows.take(right - left[0], axis=1)
        step -= pixels
        step *= across[:, None]
        pixels += step
        pixels += 0.5  # rounds, as the cast cuts off
        result[band] = pixels
    return result


def resize_nearest(label: np.ndarray, size: tuple[int, int], window: Window | None = None) -> np.ndarray:
    """Resize (H, W) labels to `size` (height, width), index i taking floor(i * H / height), and return the `window`."""
    window = window or Window(0, 0, *size)
    rows = np.arange(window.top, window.bottom) * label.shape[0] // size[0]
    columns = np.arange(window.left, window.right) * label.shape[1] // size[1]
    return label[rows[:, None], columns]


def rotated(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], window: Window, degrees: float, fill: Colour
) -> tuple[np.ndarray, np.ndarray]:
    """Resize both to `size` (height, width), rotate about the centre, and return the `window` of the result.

    What comes from outside is `fill` (one number in 0..255 per channel) in the image and `IGNORE` in the label.
    """
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = np.array([size[1] / 2, size[0] / 2])
    shift = matrix @ (np.array([window.left, window.top]) - centre) + centre
    corners = matrix @ np.array([[0, window.width, 0, window.width], [0, 0, window.height, window.height]])
    source = _box(corners + shift[:, None], size)
    shift -= source.left, source.top
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    image = resize_bilinear(image, size, source)
    outside = tuple(map(round, fill))
    if len(outside) == 3:
        image = _affine(image, window, coefficients, Image.Resampling.BILINEAR, outside)
    else:  # Pillow would take a fourth channel for alpha
        channels = [
            _affine(image[..., i], window, coefficients, Image.Resampling.BILINEAR, value)
            for i, value in enumerate(outside)
        ]
        image = np.stack(channels, axis=2)
    label = _affine(resize_nearest(label, size, source), window, coefficients, Image.Resampling.NEAREST, IGNORE)
    return image, label


def gaussian_blur(image: np.ndarray) -> np.ndarray:
    """5x5 Gaussian of (H, W, C) uint8, the border mirrored without its edge pixel; exact in integers, then rounded."""
    wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect").astype(np.uint16)  # sums end at 256 * 255 + 128
    height, width = image.shape[:2]
    rows = _five_taps(*(wide[i : i + height] for i in range(5)))
    blurred = _five_taps(*(rows[:, i : i + width] for i in range(5)))
    return ((blurred + 128) >> 8).astype(np.uint8)


def random_window(size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window of at most `crop` anywhere in an image of `size`; both (height, width)."""
    height, width = min(crop[0], size[0]), min(crop[1], size[1])
    top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    return Window(top, left, top + height, left + width)


def varied_window(
    label: np.ndarray, crop: tuple[int, int], rng: np.random.Generator, max_share: float, tries: int
) -> Window:
    """A random window in which no class has `max_share` of the labelled pixels or more; after `tries`, any window."""
    for _ in range(tries):
        window = random_window(label.shape, crop, rng)
        pixels = label[window.top : window.bottom, window.left : window.right]
        counts = np.bincount(pixels.ravel(), minlength=IGNORE + 1)[:IGNORE]
        if counts.max() < max_share * counts.sum():
            return window
    return random_window(label.shape, crop, rng)


def fit(shape: tuple[int, int], base_scale: tuple[int, int] | None, ratio: float) -> tuple[int, int]:
    """Size of an image of `shape` (height, width) once its sides fit into `base_scale` times `ratio`, its form kept."""
    long, short = base_scale or (max(shape), min(shape))
    factor = min(int(max(long, short) * ratio) / max(shape), int(min(long, short) * ratio) / min(shape))
    return max(int(shape[0] * factor + 0.5), 1), max(int(shape[1] * factor + 0.5), 1)


def distort_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness +-32, contrast and saturation times 0.5 to 1.5, hue +-36 degrees, each p 0.5; contrast first or last.

    (H, W, 3) uint8 in and out.
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else 0.0

    values = np.clip(np.arange(256) + brightness, 0, 255)
    image = _to_uint8(values * contrast if contrast_first else values)[image]
    if saturation != 1 or hue:
        turned = (np.arange(256) + round(hue * _HUE_STEPS)) % 256
        table = np.concatenate([turned, _to_uint8(np.arange(256) * saturation), np.arange(256)])
        image = np.asarray(Image.fromarray(image).convert("HSV").point(table.tolist()).convert("RGB"))
    return image if contrast_first else _to_uint8(np.arange(256) * contrast)[image]


def normalise(image: np.ndarray, mean: Colour = MEAN, std: Colour = STD) -> np.ndarray:
    """(H, W, C) uint8 -> (C, H, W) float32, (image - mean) / std."""
    result = image.transpose(2, 0, 1).astype(np.float32, order="C")
    result -= np.asarray(mean, np.float32)[:, None, None]
    result /= np.asarray(std, np.float32)[:, None, None]
    return result


def padded(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], above: int, left: int
) -> tuple[np.ndarray, np.ndarray]:
    """Place (C, h, w) and (h, w) into `size` (height, width), zeros around the image and `IGNORE` around the label."""
    height, width = label.shape
    place = slice(above, above + height), slice(left, left + width)
    full_image = np.zeros((len(image), *size), np.float32)
    full_label = np.full(size, IGNORE, np.int64)
    full_image[:, place[0], place[1]] = image
    full_label[place] = label
    return full_image, full_label


def _neighbours(before: int, after: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For outputs start..stop-1 of an axis resized from `before` to `after`: two source indices, the second's weight.

    The output centres are half-pixel centres, clamped to the first and last source centre.
    """
    position = np.clip((np.arange(start, stop) + 0.5) * (before / after) - 0.5, 0, before - 1)
    first = position.astype(np.intp)
    return first, np.minimum(first + 1, before - 1), (position - first).astype(np.float32)


def _five_taps(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray) -> np.ndarray:
    """OpenCV's Gaussian of 5 taps, times 16."""
    return a + e + 4 * (b + d) + 6 * c


def _box(points: np.ndarray, size: tuple[int, int]) -> Window:
    """Pixels that bilinear interpolation at `points` ((2, N): x, y) reads of an image of `size`; at least one."""
    left, top = np.clip(np.floor(points.min(axis=1)) - 1, 0, (size[1] - 1, size[0] - 1)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(axis=1)) + 1, (left + 1, top + 1), (size[1], size[0])).astype(int)
    return Window(int(top), int(left), int(bottom), int(right))


def _affine(
    array: np.ndarray,
    window: Window,
    coefficients: tuple[float, ...],
    resample: Image.Resampling,
    fill: float | tuple[float, ...],
) -> np.ndarray:
    size = window.width, window.height
    turned = Image.fromarray(np.ascontiguousarray(array)).transform(
        size, Image.Transform.AFFINE, coefficients, resample, fillcolor=fill
    )
    return np.asarray(turned)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
