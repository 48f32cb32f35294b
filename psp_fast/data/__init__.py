"""Data sets, transforms, and reading and checking of images and labels."""

from psp_fast.data.base import IGNORE, Dataset, Transform
from psp_fast.data.check import check_dataset
from psp_fast.data.images import png_texts, read_image, read_label, write_png
from psp_fast.data.lists import ListDataset
from psp_fast.data.missing import missing_classes
from psp_fast.data.official import LAYOUTS, folder_dataset, official_dataset
from psp_fast.data.palette import default_palette
from psp_fast.data.scenes import Scenes
from psp_fast.data.transforms import MEAN, STD, train_transform

__all__ = [
    "IGNORE",
    "LAYOUTS",
    "MEAN",
    "STD",
    "Dataset",
    "ListDataset",
    "Scenes",
    "Transform",
    "check_dataset",
    "default_palette",
    "folder_dataset",
    "missing_classes",
    "official_dataset",
    "png_texts",
    "read_image",
    "read_label",
    "train_transform",
    "write_png",
]
