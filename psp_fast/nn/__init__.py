"""Modules over `psp_fast.ops`, and the rule by which ops may stand for modules."""

from psp_fast.nn.sync_batch_norm import SyncBatchNorm2d, convert_sync_batch_norm, revert_sync_batch_norm

__all__ = ["SyncBatchNorm2d", "convert_sync_batch_norm", "revert_sync_batch_norm"]
