"""TIFF files beyond what Pillow reads."""

from typing import BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, EXTRASAMPLES, SAMPLESPERPIXEL, ImageFileDirectory_v2

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PREMULTIPLIED = 1


def unreadable(file: BinaryIO) -> str:
    """What to say of a file that Pillow does not take for an image."""
    file.seek(0)
    header = file.read(8)
    if header[:4] not in _MAGIC:
        return "is empty or not in a known image format; save it as PNG or JPEG"
    if 43 in header[2:4]:  # BigTIFF
        header += file.read(8)
    try:
        tags = ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        bands, bits = tags[SAMPLESPERPIXEL], tags[BITSPERSAMPLE][0]
    except Exception:
        return "is a TIFF that is damaged or incomplete; copy or export it again"
    return (
        f"is a TIFF of {bands} band{'s' * (bands != 1)} of {bits} bits, a kind that is not read; save one, three or "
        "four of its bands as 8-bit PNG or TIFF (GDAL: -co PHOTOMETRIC=RGB, with four also -co ALPHA=YES)"
    )


def bands(image: Image.Image) -> int:
    """How many bands the file of an opened image has, also those that Pillow leaves out."""
    return max(getattr(image, "tag_v2", {}).get(SAMPLESPERPIXEL, 1), len(image.getbands()))


def is_premultiplied(image: Image.Image) -> bool:
    """Whether the file of an opened image has an alpha band by which Pillow divides the others."""
    return _PREMULTIPLIED in getattr(image, "tag_v2", {}).get(EXTRASAMPLES, ())
