"""Reading images and labels of every kind users have, and writing PNGs without ever leaving half a file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from psp_fast.data.base import IGNORE
from psp_fast.data.reading import decoding
from psp_fast.data.sbd import read_sbd_label
from psp_fast.data.tiff import bands, is_premultiplied, unreadable
from psp_fast.errors import DataError
from psp_fast.files import open_regular, replacing

_LABEL_HINT = "a label is an 8-bit grey or palette PNG with one class id a pixel"
_PNG_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255 by this factor
# Formats of measurements, in which a band that is tagged alpha, or taken for it, may be anything, such as infrared.
_BANDED = ("TIFF", "JPEG2000")


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Read an image as (H, W, channels) uint8, turned upright by its EXIF orientation, as image viewers show it.

    channels: 3 reads any image as RGB, 1 the grey of that, 4 the bands of a file that has four, as they are.

    Unless all four bands are read, transparency is composited over white; TIFF and JPEG 2000 files, whose last band may
    hold anything, are then read only if it is 255 everywhere. 16-bit grey is scaled from 0..65535. 32-bit integers
    within 0..65535 are taken as 16-bit, floats within 0..1 as fractions and within 0..255 as they are; other values are
    stretched from the image's own minimum and maximum, and values that are not finite become 0. Of several frames the
    first is read. Raises DataError naming the file.
    """
    with _opened(path) as image:
        return _pixels(_upright(image), image, path, channels)


def read_label(path: str | Path) -> np.ndarray:
    """Read a label file as (H, W) uint8 ids: grey values or palette indices, never colours, whatever its bit depth.

    16-bit files are accepted when no value exceeds 255, and SBD's .mat files. Raises DataError naming the file.
    """
    if Path(path).suffix.lower() == ".mat":
        return read_sbd_label(path)
    with _opened(path) as image:
        step = _grey_step(image)
        pixels = np.asarray(_upright(image))
    if image.format == "JPEG":
        raise DataError(f"{path}: is a JPEG, whose compression changes class ids; {_LABEL_HINT}")
    if pixels.ndim != 2 or pixels.dtype.kind == "f":
        raise DataError(f"{path}: has mode {image.mode}, not class ids; {_LABEL_HINT}")
    if pixels.min() < 0 or pixels.max() > IGNORE:
        raise DataError(f"{path}: holds values {pixels.min()}..{pixels.max()} but ids end at {IGNORE}; {_LABEL_HINT}")
    return pixels.astype(np.uint8) // np.uint8(step)


def read_pair(image_path: str | Path, label_path: str | Path, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Read an image, with `channels` as for `read_image`, and its label so that their pixels belong together.

    Both are turned upright by their own EXIF orientation: labels drawn in a viewer or annotation tool carry none and
    fit the upright image. Where only the rows as stored have the label's size, the label was made from those, and the
    image is left as stored. Sizes that differ either way are returned as they are, for the caller to report.
    """
    label = read_label(label_path)
    size = label.shape[::-1]
    with _opened(image_path) as stored:
        upright = _upright(stored)
        fits_stored_only = upright.size != size and stored.size == size
        return _pixels(stored if fits_stored_only else upright, stored, image_path, channels), label


def write_png(
    path: str | Path,
    pixels: np.ndarray | Image.Image,
    palette: np.ndarray | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a picture or, with `palette` ((C, 3) uint8 RGB), a label map whose pixel values are the ids.

    Colours beyond the palette, so also that of ignored pixels, are black. A label map of more than 256 classes, which
    no palette can have, is written as 16-bit grey. `texts` are PNG's, by their keywords. The folder is made when
    missing, and the file appears complete or not at all. Raises DataError naming the file.
    """
    if palette is not None and len(palette) > 256:
        pixels, palette = np.asarray(pixels, np.uint16), None
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        image.putpalette(colours.tobytes())
    try:
        with replacing(path) as file:
            image.save(file, format="PNG", pnginfo=png_texts(texts or {}))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}); choose a folder with space and write access") from error


def png_texts(texts: Mapping[str, str]) -> PngInfo:
    """Texts by their keywords, as Pillow writes them into a PNG file."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    return info


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file, to be decoded in this context, which turns every way in which that can fail into a DataError."""
    # Given a path, Pillow maps uncompressed TIFFs into memory and then mistakes the width of those to be turned.
    with decoding(path, "is damaged or incomplete"), open_regular(path) as file:
        try:
            with Image.open(file) as image:
                yield image
        except UnidentifiedImageError as error:
            raise DataError(f"{path}: {unreadable(file)}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(f"{path}: is too large to decode safely ({error}); cut it into tiles") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data says nothing about the orientation
        return image


def _grey_step(image: Image.Image) -> int:
    """The factor by which Pillow is about to stretch the values of a grey PNG with 2 or 4 bits."""
    return max((_PNG_GREY_STEP.get(str(tile[3]), 1) for tile in getattr(image, "tile", ())), default=1)


def _pixels(image: Image.Image, stored: Image.Image, path: str | Path, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 of an image that was opened as `stored`, by the rules of `read_image`."""
    if channels == 4:
        return _four_bands(image, stored, path)
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bit(np.asarray(image), integers=image.mode.startswith("I"))
        return np.repeat(grey[:, :, None], channels, axis=2)
    if image.has_transparency_data:
        alpha = len(image.getbands()) - 1
        if stored.format in _BANDED and image.getchannel(alpha).getextrema() != (255, 255):
            four = "set model.in_channels to 4 to read all four, " if alpha == 3 else ""
            raise DataError(
                f"{path}: is a {stored.format} of {bands(stored)} bands, of which one counts as alpha but may be "
                f"another measurement, such as infrared, so it is not blended; {four}save the colours alone, or save a "
                "picture with transparency as PNG"
            )
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[:, :, None]


def _four_bands(image: Image.Image, stored: Image.Image, path: str | Path) -> np.ndarray:
    """(H, W, 4) uint8, the bands as they are in the file."""
    if image.mode != "RGBA":
        raise DataError(
            f"{path}: its {bands(stored)} bands are read as {image.mode}, but model.in_channels is 4; save it as TIFF "
            "or PNG of four 8-bit bands, the fourth tagged alpha (GDAL: -co ALPHA=YES)"
        )
    if is_premultiplied(stored):
        raise DataError(
            f"{path}: its fourth band is tagged as premultiplied alpha, by which the others would be divided; save it "
            "with plain alpha (GDAL: -co ALPHA=YES)"
        )
    return np.array(image)


def _to_8_bit(values: np.ndarray, integers: bool) -> np.ndarray:
    """(H, W) integers or floats -> (H, W) uint8, by the rules of `read_image`."""
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if integers and low >= 0 and high <= 65535:
        scale, low = 255 / 65535, 0.0
    elif not integers and low >= 0 and high <= 255:
        scale, low = (255.0 if high <= 1 else 1.0), 0.0
    else:
        scale = 255 / (high - low) if high > low else 0.0
    return np.rint((values - low) * scale).astype(np.uint8)
