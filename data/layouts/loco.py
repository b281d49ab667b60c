"""defects_config.json of MVTec LOCO: from how many marked pixels on the overlap with a mask counts as complete.

Each mask file marks one defect with one value, which names an entry of the configuration. P. Bergmann et al., 'Beyond
dents and scratches: logical constraints in unsupervised anomaly detection and localization', IJCV 2022.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import decoding
from data.decoding import DecodeError
from runtime.errors import UserError
from runtime.json_file import read_json

CONFIG = "defects_config.json"
FIX = f"restore it from the dataset, or remove {CONFIG} to do without sPRO"


class Saturation(NamedTuple):
    """An entry: `threshold` in pixels of the mask file; or, if relative, as a share of those that it marks."""

    threshold: float
    is_relative: bool


def read_config(path: Path) -> dict[int, Saturation]:
    """Value of a mask -> its entry; UserError where the file is malformed."""
    found: dict[int, Saturation] = {}
    try:
        for entry in read_json(path):
            value, is_relative = entry["pixel_value"], entry["relative_saturation"]
            threshold = float(entry["saturation_threshold"])
            if not (isinstance(value, int) and 1 <= value <= 255 and isinstance(is_relative, bool)):
                raise ValueError(f"the entry {entry} has no pixel_value from 1 to 255 or no relative_saturation")
            if not 0 < threshold <= (1 if is_relative else np.inf):
                raise ValueError(f"saturation_threshold = {threshold:g} of pixel_value {value}")
            if value in found:
                raise ValueError(f"two entries have pixel_value {value}")
            found[value] = Saturation(threshold, is_relative)
    except (ValueError, TypeError, KeyError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(path, f"malformed ({what})", FIX) from error
    return found


def saturation(mask: Path, config: dict[int, Saturation], source: Path) -> float:
    """The share, in (0, 1], of a mask's pixels from which on its overlap counts as complete; 1 for an empty mask.

    source: file of the configuration, for messages.
    """
    try:
        stored = decoding.decode(mask)
    except DecodeError as error:
        raise UserError(mask, error.problem, error.fix) from error
    values, counts = np.unique(stored[stored > 0], return_counts=True)
    if not len(values):
        return 1.0
    if len(values) > 1 or stored.ndim > 2:
        raise UserError(mask, f"marks one defect, as {source} is there, but has several values or channels", FIX)
    entry, area = config.get(int(values[0])), int(counts[0])
    if entry is None:
        raise UserError(mask, f"marks a defect with {values[0]}, but {source} has no such pixel_value", FIX)
    # In whole pixels, as in the published evaluation.
    pixels = max(int(entry.threshold * area), 1) if entry.is_relative else entry.threshold
    return min(pixels / area, 1.0)
