"""Files of thresholds in a run's folder."""

import json
import math
from pathlib import Path
from typing import Any

from config import Config
from evaluation.thresholds import MANUAL
from inference.preprocessing import Technique
from runtime.errors import UserError
from runtime.provenance import Provenance

FIX_HINT = "run: python main.py --threshold True (with the same --config and --set)"


def path_of(run: Path, checkpoint_name: str, technique: Technique, nominal: str | None = None) -> Path:
    """File that the thresholds of a checkpoint and technique are kept in.

    nominal: name of the folder of good pictures that they are from, None for the held-out ones.
    """
    name = technique.name + (f"_from_{nominal}" if nominal else "")
    return run / "thresholds" / f"checkpoint_{checkpoint_name}" / f"{name}.json"


def manual(config: Config) -> dict[str, dict[str, float]]:
    """`image` and `pixel`, each with the threshold of the settings; UserError where one is not set."""
    values = {"image": config.metrics.image_threshold, "pixel": config.metrics.pixel_threshold}
    for scope, value in values.items():
        if value is None:
            raise UserError(
                f"metrics.{scope}_threshold",
                "missing, although metrics.threshold_type is manual",
                "set a number from 0 to 1",
            )
    return {scope: {MANUAL: value} for scope, value in values.items()}


def read(path: Path) -> tuple[dict[str, Any], Provenance]:
    """What a file of thresholds holds, and what they were made from.

    Returns:
        `image` and `pixel`, each type -> threshold; `promises`, type -> words; `image_scores` of the pictures they come
        from; `held_out`, whether those were not trained on, None where that is not known.

    Raises:
        UserError: damaged, or of another version of this program.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = {scope: {kind: float(value) for kind, value in content[scope].items()} for scope in ("image", "pixel")}
        for scope, limit in content["conformal"].items():
            result[scope]["conformal"] = math.inf if limit is None else float(limit)
        result |= {"held_out": content["held_out"], "promises": dict(content["promises"])}
        result["image_scores"] = [float(score) for score in content["image_scores"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, "damaged", FIX_HINT) from error
    made_from = Provenance.from_json(content.get("provenance"))
    if made_from is None:
        raise UserError(path, "of another version of this program", FIX_HINT)
    return result, made_from
