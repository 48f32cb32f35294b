"""Reading images and labels of every kind users have, and writing PNGs without ever leaving half a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from psp_fast.data.base import IGNORE
from psp_fast.data.sbd import read_sbd_label
from psp_fast.errors import DataError
from psp_fast.files import replacing

_LABEL_HINT = "a label is an 8-bit grey or palette PNG with one class id a pixel"
_PNG_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow stretches 2- and 4-bit grey to 0..255 by this factor


def read_image(path: str | Path) -> np.ndarray:
    """Read any image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation, as image viewers show it.

    Transparency is composited over white. 16-bit grey is scaled from 0..65535. 32-bit integers within 0..65535 are
    taken as 16-bit, floats within 0..1 as fractions and within 0..255 as they are; other values are stretched from the
    image's own minimum and maximum, and values that are not finite become 0. Of several frames the first is read.
    Raises DataError naming the file.
    """
    with _opened(path) as image:
        return _to_rgb(_upright(image))


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


def read_pair(image_path: str | Path, label_path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its label so that their pixels belong together.

    Both are turned upright by their own EXIF orientation: labels drawn in a viewer or annotation tool carry none and
    fit the upright image. Where only the rows as stored have the label's size, the label was made from those, and the
    image is left as stored. Sizes that differ either way are returned as they are, for the caller to report.
    """
    label = read_label(label_path)
    size = label.shape[::-1]
    with _opened(image_path) as stored:
        upright = _upright(stored)
        fits_stored_only = upright.size != size and stored.size == size
        return _to_rgb(stored if fits_stored_only else upright), label


def write_png(path: str | Path, pixels: np.ndarray | Image.Image, palette: np.ndarray | None = None) -> None:
    """Write a picture or, with `palette` ((C, 3) uint8 RGB), a label map whose pixel values are the ids.

    Colours beyond the palette, so also that of ignored pixels, are black. The folder is made when missing, and the file
    appears complete or not at all. Raises DataError naming the file.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if palette is not None:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        image.putpalette(colours.tobytes())
    try:
        with replacing(path) as file:
            image.save(file, format="PNG")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}); choose a folder with space and write access") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The file, to be decoded in this context, which turns every way in which that can fail into a DataError."""
    try:
        # Given a path, Pillow maps uncompressed TIFFs into memory and then mistakes the width of those to be turned.
        with Path(path).open("rb") as file, Image.open(file) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the name and the folder it is relative to") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, not an image file") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be opened; check its permissions") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is empty or not in a known image format; save it as PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: is too large to decode safely ({error}); cut it into tiles") from error
    except Exception as error:  # decoders of damaged files raise almost anything
        raise DataError(f"{path}: is damaged or incomplete ({error}); copy or export it again") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the orientation
        return image


def _grey_step(image: Image.Image) -> int:
    """The factor by which Pillow is about to stretch the values of a grey PNG with 2 or 4 bits."""
    return max((_PNG_GREY_STEP.get(str(tile[3]), 1) for tile in getattr(image, "tile", ())), default=1)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_8_bit(np.asarray(image), integers=image.mode.startswith("I"))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


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
