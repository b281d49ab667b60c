"""From a checkpoint and images to anomaly maps and verdicts."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ["config", "config_types", "data", "data_loader", "evaluation", "model", "perlin", "registration", "runtime"]
NEEDED.append("synthesis")

# A program that imports the Detector can have modules of the same names, and Python takes the first on its path.
for name in NEEDED:
    found = importlib.util.find_spec(name)
    place = found and (found.origin or next(iter(found.submodule_search_locations or ()), None))
    if place and not Path(place).resolve().is_relative_to(ROOT):
        raise ImportError(
            f"{place} hides {ROOT / name}, which the Detector needs; rename it, run the Detector in a process of its "
            f"own with {ROOT} first in sys.path, or export the model and run it as {ROOT / 'deploy/detect.py'} does"
        )
