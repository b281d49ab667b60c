"""The report: a page to look through results, and the small images that it shows."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np

from data.folders import IMAGE_SUFFIXES
from data.image_io import to_png
from evaluation.thresholds import Thresholds
from reporting import colors, panels
from runtime.files import atomic_write, fitting, write_text

PAGE, INDEX = "report.html", "index.html"
SCRIPTS = ("marks.js", "report.js")
VIEW = "view"  # folder of the small images
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]
MOST_POINTS = 400  # of a curve
OUTLINED = 256  # pixels
HERE = Path(__file__).parent


class Shown(NamedTuple):
    """An image on the page. label: 1 anomalous, 0 nominal, None unknown. Files are relative to the page.

    path: of the image file, for feedback.csv; without it the image cannot be marked.
    """

    name: str
    folder: str
    label: int | None
    score: float | None
    area: float | None
    error: str | None = None
    image: str | None = None
    reconstruction: str | None = None
    map: str | None = None
    truth: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Page:
    """The content of a report page.

    Attributes:
        about: a sentence on what is shown. thresholds: by kind. curves: see `curve`.
        opens_with: threshold kind that the page opens with; None for 0.5.
        defects: of each kind of defect, see `paper.defects.for_page`.
    """

    title: str
    about: str
    images: Sequence[Shown]
    thresholds: dict[str, Thresholds]
    opens_with: str | None = None
    curves: Sequence[dict[str, Any]] = ()
    defects: Sequence[dict[str, Any]] = ()


def png_name(label: str) -> str:
    """Name of the PNG made from an image: its own, with .png added where another image could have the same.

    `a.jpg` becomes `a.jpg.png`, and so `a.jpg.png` becomes `a.jpg.png.png`.
    """
    path = Path(label)
    is_own = path.suffix == ".png" and Path(path.stem).suffix.lower() not in IMAGE_SUFFIXES
    return label if is_own and fitting(label) == label else f"{fitting(label)}.png"


def view_files(label: str, has_truth: bool) -> dict[str, str | None]:
    """Names of an image's files, relative to the page.

    label: the image's path within test/, or within the folder of new images.
    """
    label = fitting(label)
    names = {"image": f"images/{label}.jpg", "reconstruction": f"reconstructions/{label}.jpg"}
    names |= {"map": f"maps/{label}.png", "truth": f"truth/{label}.png"}
    found: dict[str, str | None] = {kind: f"{VIEW}/{name}" for kind, name in names.items()}
    return found if has_truth else found | {"truth": None}


def write_view(
    folder: Path,
    files: dict[str, str | None],
    image: np.ndarray,
    reconstruction: np.ndarray,
    anomaly_map: np.ndarray,
    truth: np.ndarray | None,
) -> None:
    """Write an image's files.

    Args:
        files: as `view_files` names them. image, reconstruction: (H, W, 3), BGR, and anomaly_map (H, W): float in
            [0, 1], or their eight bits. truth: bool (H, W).
    """
    for kind, plane in (("image", image), ("reconstruction", reconstruction)):
        done, data = cv2.imencode(".jpg", panels.eight_bit(plane), JPEG)
        if not done:
            raise OSError("an image could not be encoded")
        _write(folder / str(files[kind]), data)
    _write(folder / str(files["map"]), to_png(panels.eight_bit(anomaly_map)))
    if truth is not None and files["truth"]:
        factor = max(1, OUTLINED // max(truth.shape))  # enlarged where it is small, so that the outline is thin
        outlined = np.zeros((*(factor * side for side in truth.shape), 3), np.uint8)
        panels.outline(outlined, truth, colors.TRUTH)
        alpha = (outlined[..., 0] > 0).view(np.uint8) * np.uint8(255)  # the color has some blue
        _write(folder / files["truth"], to_png(cv2.merge([*cv2.split(outlined), alpha])))


def _write(path: Path, data: np.ndarray) -> None:
    with atomic_write(path) as beside:
        beside.write_bytes(data.data)


def write_page(folder: Path, page: Page) -> None:
    """Write report.html."""
    named = {
        kind: {"image": _finite(found.image), "pixel": _finite(found.pixel)} for kind, found in page.thresholds.items()
    }
    first = page.thresholds.get(page.opens_with or "", Thresholds("none", None, None))
    # No score is above 1, but thresholds can be, and infinite ones have no place on the line.
    image, pixel = (0.5 if value is None else min(value, 1.0) for value in (first.image, first.pixel))
    about = page.about
    if first.image is None:
        about += (
            " There is no threshold to open with: the line is at 0.5, which means nothing for these scores; drag it."
        )
    elif math.isinf(first.image):
        about += f" The {first.kind} threshold is infinite: no image is called anomalous. Choose another, or drag it."
    data = {
        "about": about,
        "images": [one._asdict() for one in page.images],
        "thresholds": named,
        "start": image,
        "has_threshold": first.image is not None,
        "pixel": pixel,
        "curves": list(page.curves),
        "defects": list(page.defects),
    }
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    template = _template("report.html.jinja")
    text = template.render(title=page.title, data=_json(data), script=script, colors=vars(colors))
    write_text(folder / PAGE, text)


def curve(
    title: str, x: tuple[str, str], y: tuple[str, str], levels: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """A curve for the page.

    Args:
        x, y: key of the values and name of the axis. levels: image or pixel -> `threshold` and the values.
    """
    lines = []
    for level, values in levels.items():
        places = np.unique(np.linspace(0, len(values["threshold"]) - 1, MOST_POINTS).astype(int))
        order = places[np.argsort(-values["threshold"][places], kind="stable")]
        points = np.stack([values[x[0]][order], values[y[0]][order], values["threshold"][order]], axis=1)
        points = np.nan_to_num(points.astype(float), nan=0.0, posinf=1.0, neginf=0.0)
        lines.append({"level": level, "points": np.round(points, 5).tolist()})
    return {"title": title, "x": x[1], "y": y[1], "lines": lines}


def curves_of(levels: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The curves of a page. levels: image and pixel, as far as defined -> key -> values."""
    return [
        curve(title, x, y, {level: levels[level] for level in wanted if level in levels})
        for title, x, y, wanted in (
            ("ROC", ("fpr", "false-positive rate"), ("tpr", "true-positive rate"), ("image", "pixel")),
            ("precision and recall", ("tpr", "recall"), ("precision", "precision"), ("image", "pixel")),
            ("per-region overlap", ("fpr", "false-positive rate"), ("pro", "overlap"), ("pixel",)),
            ("IoU", ("threshold", "pixel threshold"), ("iou", "IoU"), ("pixel",)),
        )
        if any(level in levels for level in wanted)
    ]


def write_index(folder: Path, title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write a page with a table of results that can be sorted, each linked to its report.

    rows: column -> value; `link` is the report's address, relative to the page, None for none.
    """
    page = _template("index.html.jinja").render(title=title, columns=columns, rows=rows)
    write_text(folder / INDEX, page)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _json(data: Any) -> str:
    """As text that can stand within a page."""
    return json.dumps(data, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c").replace("&", "\\u0026")


@cache
def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)
