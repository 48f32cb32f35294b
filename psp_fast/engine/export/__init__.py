"""Trained networks as files for other runtimes: torch.export programs and ONNX, each run against the network."""

from psp_fast.engine.export.agreement import Agreement
from psp_fast.engine.export.exporting import export

__all__ = ["Agreement", "export"]
