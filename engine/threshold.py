"""The threshold mode: thresholds from nominal images that were not trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data_loader
import runtime
from config import Config
from errors import UserError
from evaluation.metrics import image_score
from evaluation.thresholds import NominalScores
from inference import checkpoint
from inference.detect import detect
from inference.techniques import Preparation, Technique, configured
from reporting import tables


def thresholds_path(config: Config, ckpt: checkpoint.Checkpoint, technique: Technique) -> Path:
    """File that the thresholds of a checkpoint and technique are kept in."""
    return config.run_folder / "thresholds" / f"checkpoint_{ckpt.name}" / f"{technique.name}.json"


def nominal_images(config: Config, ckpt: checkpoint.Checkpoint) -> tuple[list[data_loader.TestImage], bool]:
    """Nominal pictures to take thresholds from, and whether they are held out (else: those trained on)."""
    category = data_loader.category_folder(Path(config.data.data_path), config.data.category)
    files = data_loader.list_nominal(category)
    if ckpt.held_out is None:  # the original's weights do not tell
        held_out = data_loader.split_nominal(files, config.data.val_split, config.train.seed)[1]
    else:
        by_name = {file.name: file for file in files}
        missing = [name for name in ckpt.held_out if name not in by_name]
        if missing:
            path = files[0].parent / missing[0]
            raise UserError(f"{path}: held out when {ckpt.path} was trained, now missing; restore it or train anew")
        held_out = [by_name[name] for name in ckpt.held_out]
    return [data_loader.TestImage(file, False) for file in held_out or files], bool(held_out)


def run(config: Config) -> Path:
    """Compute, save and print the thresholds of the configured checkpoint and technique; the file they are in."""
    technique = configured(config)
    with runtime.mendable_errors():
        ckpt = checkpoint.load(config)
        preparation = Preparation(config, [technique])
    [content] = thresholds_of(config, ckpt, preparation, [technique])
    print(_table(content, ckpt))
    return thresholds_path(config, ckpt, technique)


def thresholds_of(
    config: Config, ckpt: checkpoint.Checkpoint, preparation: Preparation, techniques: Sequence[Technique]
) -> list[dict[str, Any]]:
    """Compute and save the thresholds of techniques that share an input variant, in one pass; the files' content."""
    with runtime.mendable_errors():
        pictures, is_held_out = nominal_images(config, ckpt)
    dataset = preparation.dataset(pictures, techniques)
    height, width = config.data.img_size
    p, k, count = config.metrics.p, config.metrics.k, len(pictures)
    scores = [(NominalScores(p, k, count), NominalScores(p, k, count * height * width)) for _ in techniques]
    for result in detect(ckpt.model, dataset, config, "nominal images"):
        for technique, (image_scores, pixel_scores) in zip(techniques, scores, strict=True):
            seen = result.under(technique)
            image_scores.update(image_score(seen.anomaly_map))
            pixel_scores.update(seen.anomaly_map if seen.valid is None else seen.anomaly_map[seen.valid])
    contents = []
    with runtime.mendable_errors():
        for technique, (image_scores, pixel_scores) in zip(techniques, scores, strict=True):
            content = _identity(config, ckpt, preparation, technique, pictures) | {
                "checkpoint_file": ckpt.path.as_posix(),
                "pictures": count,
                "held_out": is_held_out,
                "unregistered": preparation.unregistered(pictures) if technique.registered else [],
                "pixels_left_out": count * height * width - pixel_scores.count,
                "image": image_scores.compute(),
                "pixel": pixel_scores.compute(),
                "settings": config.model_dump(mode="json"),
            }
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            runtime.write_text(thresholds_path(config, ckpt, technique), text)
            contents.append(content)
    return contents


def _identity(
    config: Config,
    ckpt: checkpoint.Checkpoint,
    preparation: Preparation,
    technique: Technique,
    pictures: Sequence[data_loader.TestImage],
) -> dict[str, Any]:
    """What must agree for thresholds to be used."""
    return {
        "checkpoint": ckpt.name,
        "fingerprint": ckpt.fingerprint,
        "category": config.data.category,
        "p": config.metrics.p,
        "k": config.metrics.k,
        **preparation.identity(technique, pictures),
    }


def _table(content: dict[str, Any], ckpt: checkpoint.Checkpoint) -> str:
    if content["held_out"]:
        source = "held-out nominal images"
        if ckpt.held_out is None:
            source += " (whether these weights were trained on them is not known)"
    else:
        source = "TRAINING images (val_split is 0: nothing was held out, so these thresholds are too low)"
    p, k = content["p"], content["k"]
    names = {"max": "max", "p_quantile": f"p_quantile (p = {p:g})", "k_sigma": f"k_sigma (k = {k:g})"}
    rows = [("", "image", "pixel")]
    rows += [(name, content["image"][kind], content["pixel"][kind]) for kind, name in names.items()]
    head = [f"thresholds from {content['pictures']} {source}"]
    if content["unregistered"]:
        head.append(f"{len(content['unregistered'])} of them could not be registered and are kept as they are")
    if content["pixels_left_out"]:
        head.append(f"{content['pixels_left_out']:,} pixels count nowhere: masked, or without a source")
    return "\n".join([*head, tables.number_table(rows, 22, 10)])


def load_thresholds(
    config: Config, ckpt: checkpoint.Checkpoint, preparation: Preparation, technique: Technique
) -> dict[str, Any]:
    """Thresholds that fit this checkpoint, image size and technique: `image` and `pixel`, each by type, and `held_out`.

    UserError where they are not computed yet, or belong to something else.
    """
    path = thresholds_path(config, ckpt, technique)
    mend = "run: python main.py --threshold True (with the same --config and --set)"
    if not path.is_file():
        raise UserError(
            f"no thresholds yet ({path} is missing); {mend}\nor set metrics.threshold=false to judge at `optimal` only"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = {scope: {kind: float(value) for kind, value in content[scope].items()} for scope in ("image", "pixel")}
        result["held_out"] = bool(content["held_out"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged; {mend}") from error
    pictures, _ = nominal_images(config, ckpt)
    for key, wanted in _identity(config, ckpt, preparation, technique, pictures).items():
        if content.get(key) != wanted:
            raise UserError(f"{path}: computed for {key} = {content.get(key)}, but now it is {wanted}; {mend}")
    return result
