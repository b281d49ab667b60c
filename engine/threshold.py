"""The threshold mode: thresholds from nominal images that were not trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folders
import provenance
import runtime
from config import Config
from errors import UserError
from evaluation.metrics import image_score
from evaluation.thresholds import NominalScores, NoScoresError
from folders import TestImage
from inference import checkpoint
from inference.checkpoint import Checkpoint
from inference.detect import detect
from inference.techniques import Preparation, Technique, configured, left_out
from provenance import Provenance
from reporting import tables

NOT_KNOWN = "whether these weights were trained on the pictures that thresholds come from is not known"


def run(config: Config) -> Path:
    """Compute, save and print the thresholds of the configured checkpoint and technique; the file they are in."""
    technique = configured(config)
    ckpt = checkpoint.load(config)
    preparation = Preparation(config, [technique])
    [content] = compute_thresholds(config, ckpt, preparation, [technique])
    print(_table(content))
    return thresholds_path(config, ckpt, technique)


def thresholds_path(config: Config, ckpt: Checkpoint, technique: Technique) -> Path:
    """File that the thresholds of a checkpoint and technique are kept in."""
    return config.run_folder / "thresholds" / f"checkpoint_{ckpt.name}" / f"{technique.name}.json"


def nominal_images(config: Config, ckpt: Checkpoint) -> tuple[list[TestImage], bool | None]:
    """Nominal pictures to take thresholds from, and whether they are held out (False: trained on; None: not known).

    Pictures are told apart by content: renamed ones stay what they were.
    """
    category = folders.category_folder(Path(config.data.data_path), config.data.category)
    files = folders.list_nominal(category)
    if ckpt.held_out is None:  # weights of another program
        held_out = folders.split_nominal(files, config.data.val_split, config.train.seed)[1]
    elif ckpt.pictures is None:  # of an earlier version, which kept names only
        held_out = _found({file.name: file for file in files}, {name: name for name in ckpt.held_out}, ckpt)
    else:
        there = dict(zip(provenance.file_digests(files), files, strict=True))
        trained, kept = (set(ckpt.pictures[part].values()) for part in ("training", "held_out"))
        if there.keys() & (trained | kept):
            wanted = {name: digest for name, digest in ckpt.pictures["held_out"].items() if digest not in trained}
            held_out = _found(there, wanted, ckpt)
        else:  # weights of another dataset have seen none of these
            held_out = files
    pictures = [TestImage(file, False) for file in sorted(held_out or files)]
    return pictures, None if ckpt.held_out is None else bool(held_out)


def _found(there: dict[str, Path], wanted: dict[str, str], ckpt: Checkpoint) -> list[Path]:
    """Files by what tells them apart. wanted: names, for people, and the same."""
    missing = [name for name, key in wanted.items() if key not in there]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        path = next(iter(there.values())).parent / missing[0]
        raise UserError(f"{path}{more}: held out when {ckpt.path} was trained, now missing; restore it or train anew")
    return [there[key] for key in wanted.values()]


def provenance_of(
    config: Config, ckpt_fingerprint: str, preparation: Preparation, technique: Technique, pictures: Sequence[TestImage]
) -> Provenance:
    """What thresholds are made from."""
    settings = {key: getattr(config.metrics, key) for key in ("p", "k")}
    settings |= {"img_size": list(config.data.img_size), "category": config.data.category}
    nominal = provenance.content([picture.path for picture in pictures])
    return Provenance(weights=ckpt_fingerprint, nominal=nominal, settings=settings, **preparation.facts(technique))


def compute_thresholds(
    config: Config, ckpt: Checkpoint, preparation: Preparation, techniques: Sequence[Technique]
) -> list[dict[str, Any]]:
    """Compute and save the thresholds of techniques that share an input variant, in one pass; the files' content."""
    pictures, is_held_out = nominal_images(config, ckpt)
    dataset = preparation.dataset(pictures, techniques)
    height, width = config.data.img_size
    p, k, count = config.metrics.p, config.metrics.k, len(pictures)
    scores = [(NominalScores(p, k, count), NominalScores(p, k, count * height * width)) for _ in techniques]
    for result in detect(ckpt.model, dataset, config, "nominal images"):
        for technique, (image_scores, pixel_scores) in zip(techniques, scores, strict=True):
            seen = left_out(result, technique)
            image_scores.update(image_score(seen.anomaly_map))
            pixel_scores.update(seen.anomaly_map if seen.valid is None else seen.anomaly_map[seen.valid])
    contents = []
    for technique, (image_scores, pixel_scores) in zip(techniques, scores, strict=True):
        try:
            thresholds = {"image": image_scores.compute(), "pixel": pixel_scores.compute()}
        except NoScoresError as error:
            raise UserError(f"{preparation.key}: {error}; leave some of the picture outside the regions") from error
        made_from = provenance_of(config, ckpt.fingerprint, preparation, technique, pictures)
        content = {
            "provenance": made_from.to_json(),
            "checkpoint": ckpt.name,
            "checkpoint_file": ckpt.path.as_posix(),
            "pictures": count,
            "held_out": is_held_out,
            "unregistered": preparation.unregistered(pictures) if technique.registered else [],
            "pixels_left_out": count * height * width - pixel_scores.count,
            **thresholds,
            "p": p,
            "k": k,
            "settings": config.model_dump(mode="json"),
        }
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        runtime.write_text(thresholds_path(config, ckpt, technique), text)
        contents.append(content)
    return contents


def _table(content: dict[str, Any]) -> str:
    source = {
        True: "held-out nominal images",
        None: "nominal images (whether these weights were trained on them is not known)",
        False: "TRAINING images (val_split is 0: nothing was held out, so these thresholds are too low)",
    }[content["held_out"]]
    p, k = content["p"], content["k"]
    names = {"max": "max", "p_quantile": f"p_quantile (p = {p:g})", "k_sigma": f"k_sigma (k = {k:g})"}
    rows = [("", "image", "pixel")]
    rows += [(name, content["image"][kind], content["pixel"][kind]) for kind, name in names.items()]
    head = [f"thresholds from {content['pictures']} {source}"]
    if content["unregistered"]:
        head.append(f"{len(content['unregistered'])} of them could not be registered and are kept as they are")
    if content["pixels_left_out"]:
        head.append(f"{content['pixels_left_out']:,} pixels are left out: masked, or without a source")
    return "\n".join([*head, tables.number_table(rows, 22, 10)])


def load_thresholds(config: Config, ckpt: Checkpoint, preparation: Preparation, technique: Technique) -> dict[str, Any]:
    """Thresholds that fit this checkpoint, image size and technique.

    Returns:
        `image` and `pixel`, each type -> threshold; `held_out`; `nominal`, the content of the pictures they come from.

    Raises:
        UserError: they are not computed yet, or belong to something else.
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
        result["held_out"] = content["held_out"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged; {mend}") from error
    there = Provenance.from_json(content.get("provenance"))
    if there is None:
        raise UserError(f"{path}: of another version of this program; {mend}")
    now = provenance_of(config, ckpt.fingerprint, preparation, technique, nominal_images(config, ckpt)[0])
    if changed := there.differences(now):
        raise UserError(f"{path}: out of date: {'; '.join(changed)}; {mend}")
    return result | {"nominal": now.nominal}
