"""Labels of the Semantic Boundaries Dataset as it distributes them: MATLAB files."""

from pathlib import Path

import numpy as np

from psp_fast.data.reading import decoding
from psp_fast.errors import DataError
from psp_fast.files import open_regular


def read_sbd_label(path: str | Path) -> np.ndarray:
    """GTcls.Segmentation of a .mat file of SBD's cls folder, (H, W) uint8 ids. Raises DataError naming the file."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path}: reading .mat files needs SciPy: pip install 'psp_fast[sbd]'") from error
    with decoding(path, "holds no GTcls.Segmentation as SBD's cls folder has it"), open_regular(path) as file:
        label = loadmat(file, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"]
    if label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(f"{path}: GTcls.Segmentation is {label.shape} {label.dtype}, not (H, W) uint8 class ids")
    return label
