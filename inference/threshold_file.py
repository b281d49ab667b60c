"""Thresholds of nominal images, kept in a file of the run's folder."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from config import Config
from evaluation.thresholds import MANUAL, NOMINAL_KINDS, Thresholds
from inference.preprocessing import Technique
from runtime.errors import UserError
from runtime.provenance import Content, Provenance

FIX_HINT = "run: python main.py --threshold True (with the same --config and --set)"


@dataclass(frozen=True)
class NominalThresholds:
    """Thresholds that do not depend on the test set.

    Attributes:
        by_kind: threshold kind -> thresholds.
        held_out: whether the nominal images that they come from were not trained on; None where that is not known.
        false_positive_rates: threshold kind -> what to expect, a sentence.
        image_scores: of these images.
        made_from: what they were computed from; None for those of the settings.
    """

    by_kind: dict[str, Thresholds]
    held_out: bool | None = True
    false_positive_rates: dict[str, str] = field(default_factory=dict)
    image_scores: list[float] = field(default_factory=list)
    made_from: Provenance | None = None

    @property
    def nominal(self) -> Content | None:
        """The nominal images that they come from."""
        return self.made_from.nominal if self.made_from else None


def path_of(run: Path, checkpoint_name: str, technique: Technique, nominal: str | None = None) -> Path:
    """File that the thresholds of a checkpoint and technique are kept in.

    nominal: name of the folder of nominal images that they come from, None for the held-out ones.
    """
    name = technique.name + (f"_from_{nominal}" if nominal else "")
    return run / "thresholds" / f"checkpoint_{checkpoint_name}" / f"{name}.json"


def manual(config: Config) -> NominalThresholds:
    """The thresholds of the settings; UserError where one is not set."""
    values = {"image": config.metrics.image_threshold, "pixel": config.metrics.pixel_threshold}
    for scope, value in values.items():
        if value is None:
            raise UserError(
                f"metrics.{scope}_threshold",
                "missing, although metrics.threshold_type is manual",
                "set a number from 0 to 1",
            )
    return NominalThresholds({MANUAL: Thresholds(MANUAL, **values)})


def read(path: Path) -> NominalThresholds:
    """Thresholds of a file; UserError where it is damaged, or of another version of this program."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        image, pixel = (
            {kind: float(value) for kind, value in content[scope].items()}
            | {"conformal": math.inf if content["conformal"][scope] is None else float(content["conformal"][scope])}
            for scope in ("image", "pixel")
        )
        found = NominalThresholds(
            {kind: Thresholds(kind, value, pixel[kind]) for kind, value in image.items()},
            content["held_out"],
            dict(content["promises"]),
            [float(score) for score in content["image_scores"]],
            Provenance.from_json(content.get("provenance")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, "damaged", FIX_HINT) from error
    if found.made_from is None or not set(NOMINAL_KINDS) <= set(found.by_kind):
        raise UserError(path, "of another version of this program", FIX_HINT)
    return found
