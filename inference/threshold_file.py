"""Thresholds of nominal images, kept in a file of the run's folder."""

import glob
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import Config
from evaluation.thresholds import MANUAL, NOMINAL_KINDS, Thresholds
from inference.checkpoint import Checkpoint
from inference.preprocessing import Technique
from runtime.errors import UserError
from runtime.files import short_hash, write_text
from runtime.json_file import read_json
from runtime.names import composed
from runtime.provenance import Content, Provenance, digest
from runtime.version import program_version

FIX_HINT = "run: python main.py --threshold True (with the same --config and --set)"


@dataclass(frozen=True)
class NominalThresholds:
    """Thresholds that do not depend on the test set.

    Attributes:
        by_kind: threshold kind -> thresholds; infinite ones where there are too few images.
        held_out: whether the nominal images that they come from were not trained on; None where that is not known.
        false_positive_rates: threshold kind -> what to expect, a sentence.
        image_scores: of these images. unregistered: names of those that could not be registered.
        pixels_left_out: number of their pixels that are masked, or outside of the registered image.
        made_from: what they were computed from; None for those of the settings.
    """

    by_kind: dict[str, Thresholds]
    held_out: bool | None = True
    false_positive_rates: dict[str, str] = field(default_factory=dict)
    image_scores: list[float] = field(default_factory=list)
    unregistered: list[str] = field(default_factory=list)
    pixels_left_out: int = 0
    made_from: Provenance | None = None

    @property
    def nominal(self) -> Content | None:
        """The nominal images that they come from."""
        return self.made_from.nominal if self.made_from else None


def nominal_name(folder: Path) -> str:
    """What a folder of nominal images is called in file names: its name and a hash of its full path."""
    path = composed(folder.resolve().as_posix())
    return f"{Path(path).name}-{short_hash(path)}"


def path_of(
    run: Path, checkpoint_name: str, technique: Technique, nominal: str | None = None, engine: str = "torch"
) -> Path:
    """File that the thresholds of a checkpoint and technique are kept in.

    Args:
        nominal: the folder of nominal images that they come from, its name or `nominal_name`; None for the held-out
            images.
        engine: inference.engine, whose scores they are of.

    Raises:
        UserError: thresholds of several folders of that name.
    """
    folder = run / "thresholds" / f"checkpoint_{checkpoint_name}"
    stem = technique.name if engine == "torch" else f"{technique.name}_{engine}"
    if nominal is None:
        return folder / f"{stem}.json"
    name = f"{stem}_from_{composed(nominal)}"
    found = sorted(folder.glob(f"{glob.escape(name)}-{'[0-9a-f]' * 8}.json"))
    if len(found) > 1 and not (folder / f"{name}.json").is_file():
        names = ", ".join(path.stem.removeprefix(f"{stem}_from_") for path in found)
        raise UserError(f"metrics.nominal = {nominal}", "thresholds of several folders", f"choose one of: {names}")
    return found[0] if len(found) == 1 else folder / f"{name}.json"


def nominal_names(folder: Path, technique: Technique) -> list[str]:
    """What the folders of nominal images are called that a technique has thresholds of, in a folder of thresholds."""
    start = f"{technique.name}_from_"
    return [path.stem.removeprefix(start) for path in sorted(folder.glob(f"{start}*.json"))]


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


def write(path: Path, config: Config, ckpt: Checkpoint, found: NominalThresholds) -> None:
    """Write the thresholds of a checkpoint; conformal ones apart from the others, null where they are infinite."""
    assert found.made_from is not None  # only manual ones are without
    values = {scope: {kind: getattr(one, scope) for kind, one in found.by_kind.items()} for scope in ("image", "pixel")}
    conformal = {scope: kinds.pop("conformal") for scope, kinds in values.items()}
    content = {
        "provenance": found.made_from.to_json(),
        "checkpoint": ckpt.name,
        "checkpoint_file": ckpt.path.as_posix(),
        "pictures": len(found.image_scores),
        "held_out": found.held_out,
        "unregistered": found.unregistered,
        "pixels_left_out": found.pixels_left_out,
        "conformal": {scope: value if math.isfinite(value) else None for scope, value in conformal.items()},
        **values,
        "p": config.metrics.p,
        "k": config.metrics.k,
        "max_false_alarms": config.metrics.max_false_alarms,
        "promises": found.false_positive_rates,
        "image_scores": found.image_scores,
        "settings": config.model_dump(mode="json"),
        "program_version": program_version(),
    }
    content["checksum"] = _checksum(content)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", durable=True)


def _checksum(content: dict[str, Any]) -> str:
    """Digest of all entries that are used."""
    used = {key: value for key, value in content.items() if key not in ("checksum", "settings", "program_version")}
    return digest([json.dumps(used, sort_keys=True)])


def _finite(value: Any) -> float:
    """The same number; ValueError for another kind of value, and for one that is not finite."""
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return float(value)


def read(path: Path) -> NominalThresholds:
    """Thresholds of a file; UserError where it is damaged, or of another version of this program."""
    try:
        content = read_json(path)
        if "checksum" in content and content["checksum"] != _checksum(content):
            raise ValueError("its content does not match its checksum")
        image, pixel = (
            {kind: _finite(value) for kind, value in content[scope].items()}
            | {"conformal": math.inf if content["conformal"][scope] is None else _finite(content["conformal"][scope])}
            for scope in ("image", "pixel")
        )
        found = NominalThresholds(
            {kind: Thresholds(kind, value, pixel[kind]) for kind, value in image.items()},
            content["held_out"],
            dict(content["promises"]),
            [_finite(score) for score in content["image_scores"]],
            [str(name) for name in content["unregistered"]],
            int(content["pixels_left_out"]),
            Provenance.from_json(content.get("provenance")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, "damaged", FIX_HINT) from error
    if found.made_from is None or not set(NOMINAL_KINDS) <= set(found.by_kind):
        raise UserError(path, "of another version of this program", FIX_HINT)
    return found
