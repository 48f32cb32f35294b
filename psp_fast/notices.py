"""Warnings to the user of the command line."""

import sys

from tqdm import tqdm


def warn(text: str) -> None:
    """Print a warning to stderr, above a progress bar where there is one."""
    tqdm.write(f"psp-fast: warning: {text}", file=sys.stderr)
