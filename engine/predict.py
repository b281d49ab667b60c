"""The predict mode: verdicts on new images."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from config import Config
from data.folders import DatasetNotes, images_below
from data.mvtec import TestSample, check_bit_depth
from evaluation.thresholds import FEWEST, differ_significantly, distance
from inference.detector import Detection, Detector
from inference.preprocessing import ModelInput
from reporting.predictions import SUMMARY, Predictions, locked, row, row_of_error
from runtime.device import core_count, is_device_fault, select_device, select_precision
from runtime.errors import UserError, format_error
from runtime.files import fitting, short_hash, write_text

NAMED = 10  # failed images that are printed; predictions.csv has all


class InputImage(NamedTuple):
    """An image to run inference on. label: path of its files within the folder of predictions."""

    path: Path
    label: str


def run(config: Config, paths: Sequence[Path], output: Path | None = None, resume: bool = False) -> tuple[Path, int]:
    """Run inference on images, and on those in folders at any depth, with the configured checkpoint.

    Args:
        output: folder to write to, None for the default one.
        resume: continue the predictions of an earlier call.

    Returns:
        the folder of predictions, and how many images failed.

    Raises:
        UserError: no images, no checkpoint, or settings that contradict it.
    """
    images = find(paths)
    detector = Detector.for_new_images(config)
    samples = [TestSample(image.path, False, image.label) for image in images]
    for line in (*notes_of(detector), *check_bit_depth(samples, detector.config.data.known_white_level)):
        print(line)
    folder = output or default_folder(detector, paths)
    for path in paths:
        if folder.resolve().is_relative_to(path.resolve()):
            raise UserError(folder, f"lies within {path}, whose images are predicted", "name another with --output")
    with locked(folder):
        return folder, _run(detector, paths, images, folder, resume)


def _run(detector: Detector, paths: Sequence[Path], images: Sequence[InputImage], folder: Path, resume: bool) -> int:
    """Run inference and write the folder; how many images failed."""
    wanted, content = detector.config.metrics.visualisation, made_with(detector, paths)
    predictions = Predictions(folder, detector.thresholds, content, wanted, "continue" if resume else "refuse")
    done = predictions.done() if resume else set()
    left = [image for image in images if image.path.as_posix() not in done]
    if resume and len(left) < len(images):
        print(f"{len(images) - len(left)} of {len(images)} images are already done")
    failures: list[str] = []
    with tqdm(total=len(left), desc="images", unit="image", leave=None) as bar:
        for rows in infer(detector, left, predictions):
            predictions.write(rows)
            failures += [one[-1] for one in rows if one[-1]]
            bar.update(len(rows))
    for error in failures[:NAMED]:
        print(f"failed {error}")
    labels = {image.path.as_posix(): image.label for image in images}
    predictions.write_report(title_of(detector, paths[0]), labels.get, detector.all_thresholds)
    counts: Counter[str] = Counter()
    scores = []
    for one in predictions.rows():
        counts["failed" if one["error"] else one["verdict"]] += 1
        scores += [float(one["score"])] if one["score"] else []
    lines = []
    if detector.thresholds:
        verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("anomalous", "nominal"))
        lines.append(f"{verdicts} at {detector.thresholds.kind} = {detector.thresholds.image:.4g}")
    if counts["failed"]:
        lines.append(f"{counts['failed']} of {counts.total()} images failed: see the column error of predictions.csv")
    lines += _compared(scores, detector.nominal_scores)
    write_text(folder / SUMMARY, "\n".join(lines) + "\n")
    for line in lines:
        print(line)
    return counts["failed"]


def _compared(scores: Sequence[float], nominal: Sequence[float]) -> list[str]:
    """How the scores compare with those of the nominal images that thresholds come from, in a sentence."""
    if not scores or not nominal:
        return []
    statistic = distance(np.array(scores), np.array(nominal))
    compared = f"Kolmogorov-Smirnov distance {statistic:.2f} from the {len(nominal)} scores that thresholds come from: "
    differ = differ_significantly(np.array(scores), np.array(nominal))
    if differ is None:
        return [f"{compared}too few to say, with {len(scores)} scores here; {FEWEST} of both are needed"]
    if not differ:
        return [compared + "no significant difference"]
    return [
        compared + "a significant difference: many of these images are anomalous, or they are taken in another way; "
        "for nominal images taken in another way compute new thresholds: --threshold True --nominal FOLDER"
    ]


def find(paths: Sequence[Path]) -> list[InputImage]:
    """The images of files and folders; UserError where one does not exist, or a folder has no image."""
    found: list[InputImage] = []
    names = Counter(path.resolve().name for path in paths)
    for path in paths:
        if not path.is_file() and not path.is_dir():
            raise UserError(path, "no such file or folder", "name images or folders of images")
        notes = DatasetNotes()
        below = images_below(path, notes) if path.is_dir() else [path]
        if not below:
            raise UserError(path, "no image in this folder", "name another")
        for line in notes.lines():
            print(f"{path}: {line}")
        name = path.resolve().name
        if names[name] > 1:  # another path has the same name
            mark = short_hash(str(path.resolve()))
            name = f"{name}~{mark}" if path.is_dir() else f"{path.stem}~{mark}{path.suffix}"
        for one in below:
            inside = one.relative_to(path).as_posix() if path.is_dir() else ""
            label = inside if len(paths) == 1 and inside else "/".join(filter(None, (name, inside)))
            found.append(InputImage(one, label))
    return found


def notes_of(detector: Detector) -> Iterator[str]:
    """What the user should know about a detector."""
    yield from detector.notes
    if detector.thresholds is None and detector.config.metrics.threshold:
        yield (
            f"no thresholds ({detector.thresholds_path} is missing): scores and maps without a verdict; for verdicts "
            "run: python main.py --threshold True (with the same --config and --set)"
        )


def title_of(detector: Detector, path: Path) -> str:
    """Title of the report on the images of a path."""
    return f"{detector.config.data.category}, checkpoint {detector.name}: {path.resolve().name}"


def default_folder(detector: Detector, paths: Sequence[Path]) -> Path:
    """Folder of predictions, below the checkpoint's results: the first path's name and a hash of all full paths."""
    data = detector.config.data
    name = f"{paths[0].resolve().name or 'root'}-{short_hash(_full(paths))}"
    checkpoint_folder = Path(data.results_path) / data.run_name / data.category / f"checkpoint_{detector.name}"
    return checkpoint_folder / "predictions" / fitting(name)


def _full(paths: Sequence[Path]) -> str:
    return "\n".join(sorted(path.resolve().as_posix() for path in paths))


def made_with(detector: Detector, paths: Sequence[Path]) -> dict:
    """What predictions depend on. paths: of the images, which names of maps are relative to."""
    thresholds, train = detector.thresholds, detector.config.train
    precision = str(select_precision(train.precision, select_device(train.device)))
    return {
        "checkpoint_file": detector.ckpt.path.as_posix(),
        "weights": detector.ckpt.fingerprint,
        "technique": detector.technique.name,
        "precision": precision if detector.engine == "torch" else detector.engine,
        "made_from": detector.made_from().to_json(),
        "images_of": _full(list({path if path.is_dir() else path.parent for path in paths})),
        # As texts: thresholds can be infinite.
        "thresholds": thresholds and [thresholds.kind, repr(thresholds.image), repr(thresholds.pixel)],
    }


def infer(detector: Detector, images: Sequence[InputImage], predictions: Predictions) -> Iterator[list[list]]:
    """Run inference; yield the rows of each batch, in order, once its maps and panels are written.

    Images are read, and maps written, in threads while the networks run.
    """
    size = detector.images_at_once

    def read(image: InputImage) -> ModelInput | str:
        try:
            return detector.read(image.path)
        except Exception as error:  # whatever fails concerns this image alone
            return error_of(image.path, error)

    with ThreadPoolExecutor(core_count()) as pool:
        batches = [images[first : first + size] for first in range(0, len(images), size)]
        coming: list[Future] = []
        writing: tuple[list[list], list[Future | None]] | None = None
        for number, batch in enumerate(batches):
            now = coming or [pool.submit(read, image) for image in batch]
            following = batches[number + 1] if number + 1 < len(batches) else []
            coming = [pool.submit(read, image) for image in following]
            rows: list[list] = []
            drawn: list[Future | None] = []
            for image, found, seconds in _detections(detector, batch, [future.result() for future in now]):
                if isinstance(found, str):
                    rows.append(row_of_error(image.path.as_posix(), found))
                    drawn.append(None)
                    continue
                drawn.append(pool.submit(predictions.draw, image.label, found, predictions.wants_panel(found)))
                rows.append(row(image.path.as_posix(), found, detector.thresholds, seconds))
            if writing:
                yield from _when_drawn(*writing)
            writing = rows, drawn
        if writing:
            yield from _when_drawn(*writing)


def _detections(
    detector: Detector, batch: Sequence[InputImage], read: Sequence[ModelInput | str]
) -> Iterator[tuple[InputImage, Detection | str, float]]:
    """Each image with its detection, or the error, and the seconds that it took."""
    ready = [one for one in read if not isinstance(one, str)]
    start = time.perf_counter()
    try:
        found: Iterator[Detection | str] = iter(detector.run(ready))
    except Exception:  # one of them failed, or together they need too much memory: run each by itself
        inputs = [(image, one) for image, one in zip(batch, read, strict=True) if not isinstance(one, str)]
        found = iter([_detection_alone(detector, image, one) for image, one in inputs])
    seconds = (time.perf_counter() - start) / max(len(ready), 1)
    for image, one in zip(batch, read, strict=True):
        yield image, one if isinstance(one, str) else next(found), seconds


def _detection_alone(detector: Detector, image: InputImage, model_input: ModelInput) -> Detection | str:
    try:
        return detector.run([model_input])[0]
    except Exception as error:  # the next image may do
        if is_device_fault(error):
            raise
        return error_of(image.path, error)


def error_of(path: Path, error: Exception) -> str:
    """One line about an image that failed."""
    text = format_error(error)
    return text if str(path) in text else f"{path}: {text}"


def _when_drawn(rows: list[list], drawn: Sequence[Future | None]) -> Iterator[list[list]]:
    """Rows whose maps and panels are written. OSError where there is no place to write to, after the finished rows."""
    finished, full = [], None
    for one, future in zip(rows, drawn, strict=True):
        try:
            if future:
                future.result()
        except OSError as error:
            if error.errno is not None:
                full = full or error
                continue
            one = row_of_error(one[0], error_of(Path(one[0]), error))
        except Exception as error:  # of drawing or encoding this image
            one = row_of_error(one[0], error_of(Path(one[0]), error))
        finished.append(one)
    yield finished
    if full:
        raise full
