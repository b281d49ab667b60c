"""The predict mode: verdicts on pictures from anywhere."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from config import Config
from data.folders import DatasetNotes, images_below
from evaluation.thresholds import differ_significantly, distance
from inference import checkpoint
from inference.detector import Detection, Detector
from inference.preprocessing import ModelInput
from reporting.predictions import SUMMARY, Predictions, row, row_of_error
from runtime.device import core_count, select_device, select_precision
from runtime.errors import UserError, format_error
from runtime.files import write_text


class Picture(NamedTuple):
    """A picture to infer. label: its path within the folder of predictions."""

    path: Path
    label: str


def run(config: Config, paths: Sequence[Path], output: Path | None = None, resume: bool = False) -> tuple[Path, int]:
    """Judge pictures, and those in folders at any depth, with the configured checkpoint.

    Args:
        output: folder to write to, None for the usual one.
        resume: go on with what an earlier call has left undone.

    Returns:
        the folder of predictions, and how many pictures could not be judged.

    Raises:
        UserError: nothing to infer, no checkpoint, or settings that contradict it.
    """
    pictures = find(paths)
    config, weights = checkpoint.for_new_images(config)
    detector = Detector.of(config, weights)
    for line in notes_of(detector):
        print(line)
    folder = output or usual_folder(detector, paths[0])
    predictions = Predictions(folder, detector.limits, made_with(detector), config.metrics.visualisation, resume)
    done = predictions.done() if resume else set()
    left = [picture for picture in pictures if picture.path.as_posix() not in done]
    if resume and len(left) < len(pictures):
        print(f"{len(pictures) - len(left)} of {len(pictures)} pictures are done already")
    verdicts: Counter[str] = Counter()
    with tqdm(total=len(left), desc="pictures", unit="picture", leave=None) as bar:
        for rows in infer(detector, left, predictions):
            predictions.write(rows)
            verdicts.update("failed" if one[-1] else one[4] for one in rows)
            bar.update(len(rows))
    labels = {picture.path.as_posix(): picture.label for picture in pictures}
    predictions.write_report(title_of(detector, paths[0]), labels.get, detector.thresholds)
    failed = verdicts.pop("failed", 0)
    lines = []
    if detector.limits:
        counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in ("anomalous", "nominal"))
        lines.append(f"{counts} at {detector.limits.kind} = {detector.limits.image:.4g}")
    if failed:
        lines.append(f"{failed} of {len(left)} pictures could not be judged: see the column error of predictions.csv")
    lines += _compared(predictions.scores(), detector.nominal_scores)
    write_text(folder / SUMMARY, "\n".join(lines) + "\n")
    print("\n".join(lines))
    return folder, failed


def _compared(scores: Sequence[float], nominal: Sequence[float]) -> list[str]:
    """How far scores lie from those that the thresholds were made of."""
    if not scores or not nominal:
        return []
    apart = distance(np.array(scores), np.array(nominal))
    said = f"Kolmogorov-Smirnov distance {apart:.2f} from the {len(nominal)} scores that the thresholds are from: "
    if not differ_significantly(np.array(scores), np.array(nominal)):
        return [said + "alike, as if these pictures were good ones taken in the same way"]
    return [
        said + "not alike: many of these pictures are defective, or they are taken otherwise; for good pictures taken "
        "otherwise compute new thresholds: --threshold True --nominal FOLDER"
    ]


def find(paths: Sequence[Path]) -> list[Picture]:
    """The pictures that paths mean; UserError where one is not there, or a folder has no picture."""
    found, taken = [], Counter()
    for path in paths:
        if not path.exists():
            raise UserError(path, "no such file or folder", "name images or folders of images")
        notes = DatasetNotes()
        below = images_below(path, notes) if path.is_dir() else [path]
        if not below:
            raise UserError(path, "no image in this folder", "name another")
        for line in notes.lines():
            print(f"{path}: {line}")
        name = path.resolve().name
        taken[name] += 1
        if taken[name] > 1:  # another of the same name
            name = f"{name}~{taken[name]}" if path.is_dir() else f"{path.stem}~{taken[name]}{path.suffix}"
        for one in below:
            inside = one.relative_to(path).as_posix() if path.is_dir() else ""
            label = inside if len(paths) == 1 and inside else "/".join(filter(None, (name, inside)))
            found.append(Picture(one, label))
    return found


def notes_of(detector: Detector) -> Iterator[str]:
    """What the user should know of a detector."""
    yield from detector.notes
    if detector.limits is None and detector.config.metrics.threshold:
        yield (
            f"no thresholds ({detector.thresholds_path} is missing): scores and maps without a verdict; for verdicts "
            "run: python main.py --threshold True (with the same --config and --set)"
        )


def title_of(detector: Detector, path: Path) -> str:
    """Of the page about the pictures of a path."""
    return f"{detector.config.data.category}, checkpoint {detector.name}: {path.resolve().name}"


def usual_folder(detector: Detector, path: Path) -> Path:
    """Folder of predictions below the checkpoint's results, named after the first path."""
    data = detector.config.data
    name = path.resolve().name or "root"
    checkpoint_folder = Path(data.results_path) / data.run_name / data.category / f"checkpoint_{detector.name}"
    return checkpoint_folder / "predictions" / name


def made_with(detector: Detector) -> dict:
    """What predictions depend on."""
    limits, train = detector.limits, detector.config.train
    return {
        "checkpoint_file": detector.ckpt.path.as_posix(),
        "weights": detector.ckpt.fingerprint,
        "technique": detector.technique.name,
        "precision": str(select_precision(train.precision, select_device(train.device))),
        "made_from": detector.made_from().to_json(),
        "thresholds": limits and [limits.kind, repr(limits.image), repr(limits.pixel)],  # may be infinite
    }


def infer(detector: Detector, pictures: Sequence[Picture], predictions: Predictions) -> Iterator[list[list]]:
    """Rows of the pictures, in order, a list for each pass of the networks; their maps and panels are written by then.

    Pictures are read, and maps written, in threads while the networks run.
    """
    size = detector.images_at_once

    def read(picture: Picture) -> ModelInput | str:
        try:
            return detector.read(picture.path)
        except (UserError, OSError, MemoryError, cv2.error) as error:
            return format_error(error) if isinstance(error, (UserError, OSError)) else f"{picture.path}: {error}"

    with ThreadPoolExecutor(core_count()) as pool:
        batches = [pictures[first : first + size] for first in range(0, len(pictures), size)]
        coming: list[Future] = []
        writing: tuple[list[list], list[Future]] | None = None
        for number, batch in enumerate(batches):
            now = coming or [pool.submit(read, picture) for picture in batch]
            following = batches[number + 1] if number + 1 < len(batches) else []
            coming = [pool.submit(read, picture) for picture in following]
            rows, drawn = [], []
            for picture, found, seconds in _found(detector, batch, [future.result() for future in now]):
                if isinstance(found, str):
                    rows.append(row_of_error(picture.path.as_posix(), found))
                    continue
                drawn.append(pool.submit(predictions.draw, picture.label, found, predictions.wants_panel(found)))
                rows.append(row(picture.path.as_posix(), found, detector.limits, seconds))
            if writing:
                yield _written(*writing)
            writing = rows, drawn
        if writing:
            yield _written(*writing)


def _found(
    detector: Detector, batch: Sequence[Picture], read: Sequence[ModelInput | str]
) -> Iterator[tuple[Picture, Detection | str, float]]:
    """Each picture with what was found in it, or why nothing was, and the seconds that it took."""
    ready = [one for one in read if not isinstance(one, str)]
    start = time.perf_counter()
    try:
        found = iter(detector.run(ready))
    except UserError:  # of one of them
        found = iter([_alone(detector, one) for one in ready])
    seconds = (time.perf_counter() - start) / max(len(ready), 1)
    for picture, one in zip(batch, read, strict=True):
        yield picture, one if isinstance(one, str) else next(found), seconds


def _alone(detector: Detector, picture: ModelInput) -> Detection | str:
    try:
        return detector.run([picture])[0]
    except UserError as error:
        return format_error(error)


def _written(rows: list[list], drawn: Sequence[Future]) -> list[list]:
    for future in drawn:
        future.result()
    return rows
