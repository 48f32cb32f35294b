"""What trainers of other projects save beside the weights: read as nothing, so that the weights can be read."""

from __future__ import annotations

from typing import Any

_NAMES = (  # mmengine's message hub, which holds histories of losses with their numpy arrays and methods
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


class Unread:
    """Stands for an object that was left unread; takes any arguments and any state, and keeps none."""

    def __new__(cls, *_: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def stand_ins() -> list[Any]:
    """For torch.serialization.safe_globals: `Unread` in the place of every class and function that may be met."""
    return [(Unread, name) for name in _NAMES]
