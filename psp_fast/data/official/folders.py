"""Any folder: images/<split>/<name>.jpg with labels/<split>/<name>.png."""

from pathlib import Path

from psp_fast.data.official.layout import Samples, listed, paired

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
_LABELS = (".png", ".bmp", ".tif", ".tiff", ".mat")


def find(root: Path, split: str) -> Samples:
    """Samples of a split, "." where images and labels have no folders of splits; folders may be nested alike."""
    return matching(root / "images" / split, root / "labels" / split)


def matching(images: Path, labels: Path) -> Samples:
    """Images of one folder with the labels of the same name in another."""
    return paired(listed(images, _IMAGES), listed(labels, _LABELS), (images, labels))
