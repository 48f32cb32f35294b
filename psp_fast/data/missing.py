"""What to say of labels in which classes are missing."""

from collections.abc import Sequence

import numpy as np

from psp_fast.data.base import IGNORE

_LISTED = 10  # names spelled out in one message


def missing_classes(pixels: np.ndarray, classes: Sequence[str], where: str) -> str | None:
    """A sentence on the classes that no pixel has, or None: pixels (C,) counts labelled pixels in `where`."""
    never = [name for name, count in zip(classes, pixels, strict=True) if count == 0]
    if not never:
        return None
    if len(never) == len(classes):
        return (
            f"every pixel of {where} is ignored ({IGNORE}), so there is nothing to learn or to measure; "
            "if the files hold ids of classes, map them with data.label_ids"
        )
    names = ", ".join(never[:_LISTED]) + (f" and {len(never) - _LISTED} more" if len(never) > _LISTED else "")
    text = f"no pixel of {where} has the class{'es' if len(never) > 1 else ''} {names}"
    if never == list(classes[1:]):
        text += (
            f": only the value 0 counts, as {IGNORE} means ignored; if the files hold 0 and {IGNORE} for two classes, "
            f"set data.label_ids to [0, {IGNORE}]"
        )
    return text
