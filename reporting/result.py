"""The folder of results of one checkpoint and technique: metrics, lists, curves and panels."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import image_io
import runtime
from config import Config
from data_loader import TestImage
from evaluation import metrics
from evaluation.thresholds import OPTIMAL
from reporting import curves, panels, tables
from reporting.measurements import Measurements

if TYPE_CHECKING:
    from inference.detect import NetworkOutput

MADE_WITH = "made_with.json"
CURVES = "curves.npz"


def read_made_with(folder: Path) -> dict[str, Any]:
    """What complete results in a folder were made with; empty where there are none."""
    try:
        content = json.loads((folder / MADE_WITH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("thresholds"), list) else {}


def is_made_with(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether results that are there have the numbers that are wanted."""
    ignored = ("thresholds", "checkpoint_")
    return all(there.get(key) == value for key, value in wanted.items() if not key.startswith(ignored))


class Result:
    """Fed picture by picture, it writes the folder of its results.

    Args:
        folder: where to write. category: folder that paths are told relative to. pictures: in the dataset's order.
        nominal: thresholds of nominal images, `image` and `pixel` each by type; None: `optimal` only.
        kinds: types of thresholds to judge at.
        made_with: what the results depend on; kept with them, written last. Keys that begin with `checkpoint_` do not
            count: the same weights can lie in several files.
        notes: to be told with the metrics; lists only in the JSON.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        category: Path,
        pictures: Sequence[TestImage],
        nominal: dict[str, Any] | None,
        kinds: Sequence[str],
        made_with: dict[str, Any],
        notes: dict[str, Any],
    ):
        self.config, self.folder = config, folder
        self.measured = Measurements(pictures, category)
        nominal_kinds = [kind for kind in kinds if kind != OPTIMAL] if nominal else []
        self.thresholds = {kind: (nominal["image"][kind], nominal["pixel"][kind]) for kind in nominal_kinds}
        preferred = [config.metrics.threshold_type, *nominal_kinds]
        self.judged_by = next((kind for kind in preferred if kind in self.thresholds), OPTIMAL)
        self.kinds, self.made_with, self.notes = list(kinds), made_with, dict(notes)
        self.title = f"{config.data.category}, {folder.parent.name}, {folder.name}"
        self._panels: set[Path] = set()
        self._background = runtime.Background()  # panels
        earlier = read_made_with(folder)
        made_with["thresholds"] = list(kinds)
        if is_made_with(earlier, made_with):
            made_with["thresholds"] += [kind for kind in earlier["thresholds"] if kind not in kinds]
        else:
            for path in folder.glob("*/metrics.*"):  # of other weights or settings: not to stand beside these
                path.unlink()
        (folder / MADE_WITH).unlink(missing_ok=True)
        # Thresholds of the test set are known only after its last picture; until then the panels' arrays wait on disk.
        can_judge = self.judged_by != OPTIMAL or config.metrics.visualisation == "none"
        folder.mkdir(parents=True, exist_ok=True)
        self._waiting = None if can_judge else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by finish)

    def update(self, found: "NetworkOutput") -> None:
        """Take in one picture."""
        self.measured.update(found)
        arrays = (found.image, found.reconstruction, found.anomaly_map, found.mask)
        if self._waiting:
            with runtime.naming(self.folder):
                for array in arrays:
                    np.save(self._waiting, array)
        else:
            self._write_panel(found.idx, *arrays)

    def finish(self, seconds: float) -> str:
        """Write metrics, lists, curves and the panels still to come; the metrics as a table for people.

        seconds: that inference took.
        """
        measured = self.measured
        self.thresholds[OPTIMAL] = measured.optimal_thresholds()
        self.notes |= measured.notes()
        columns = {kind: measured.metrics_at(*self.thresholds[kind]) for kind in self.thresholds if kind in self.kinds}
        for kind, values in columns.items():
            content = values | {"notes": self.notes | measured.reasons(kind, values)}
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            runtime.write_text(self.folder / kind / "metrics.json", text)
            runtime.write_text(self.folder / kind / "metrics.txt", self._table({kind: values}) + "\n")
        self._write_lists()
        self._draw_curves()
        self._draw_scores()
        self._draw_mistakes()
        self._write_waiting_panels()
        self._background.wait()
        for path in set((self.folder / "panels").rglob("*.png")) - self._panels:
            path.unlink()  # of an earlier run
        made_with = self.made_with | {"images": len(measured.pictures), "seconds": round(seconds, 3)}
        made_with |= {"settings": self.config.model_dump(mode="json")}
        runtime.write_text(self.folder / MADE_WITH, json.dumps(made_with, indent=2, allow_nan=False) + "\n")
        return self._table(columns)

    def _table(self, columns: dict[str, dict[str, Any]]) -> str:
        table = tables.metrics_table(columns, self.notes)
        if OPTIMAL in columns:
            table += "\nnote: the thresholds `optimal` are chosen on the test set: optimistic"
        return table

    def _predicted(self, idx: int) -> bool | None:
        threshold = self.thresholds[self.judged_by][0]
        return None if threshold is None else bool(self.measured.scores[idx] > threshold)

    def _write_lists(self) -> None:
        measured, rows = self.measured, []
        for idx, (label, score) in enumerate(zip(measured.labels, measured.scores, strict=True)):
            predicted = self._predicted(idx)
            said = "" if predicted is None else int(predicted)
            rows.append([measured.name(idx), int(label), repr(float(score)), said])
        wrong = [row for row in rows if row[3] not in ("", row[1])]
        lists = {"scores.csv": rows, "misclassified.csv": wrong if self.config.metrics.misclassifications else None}
        for name, content in lists.items():
            if content is None:
                (self.folder / name).unlink(missing_ok=True)
                continue
            runtime.write_csv(self.folder / name, [["path", "label", "score", "prediction"], *content])

    def _wants_panel(self, idx: int) -> bool:
        wanted, count = self.config.metrics.visualisation, len(self.measured.pictures)
        if wanted == "errors":
            return self._predicted(idx) not in (None, bool(self.measured.labels[idx]))
        if isinstance(wanted, int):  # spread over nominal and defective ones alike
            return idx in np.linspace(0, count - 1, min(wanted, count)).astype(int)
        return wanted == "all"

    def _write_panel(
        self, idx: int, image: np.ndarray, reconstruction: np.ndarray, anomaly_map: np.ndarray, mask: np.ndarray
    ) -> None:
        if not self._wants_panel(idx):
            return
        picture = self.measured.pictures[idx]
        predicted, (image_threshold, pixel_threshold) = self._predicted(idx), self.thresholds[self.judged_by]
        is_correct = None if predicted is None else predicted == picture.has_anomaly
        verdict = f"score {self.measured.scores[idx]:.3f}"
        if predicted is not None:
            said, sign = ("anomalous", ">") if predicted else ("nominal", "<=")
            right = "correct" if is_correct else "WRONG"
            verdict = f"{said}: {verdict} {sign} {image_threshold:.3f} ({self.judged_by}), {right}"
        name = picture.path.name if picture.path.suffix == ".png" else f"{picture.path.name}.png"
        path = self.folder / "panels" / picture.path.parent.name / name
        has_truth = bool(picture.mask_path) or not picture.has_anomaly
        above = anomaly_map > (np.inf if pixel_threshold is None else pixel_threshold)
        arrays = (image, reconstruction, anomaly_map, mask if has_truth else None, above)
        title = f"{self.config.data.category}/{self.measured.name(idx)}"
        self._background.do(_write_panel, path, title, verdict, is_correct, *arrays)
        self._panels.add(path)

    def _write_waiting_panels(self) -> None:
        if self._waiting:
            with self._waiting:
                self._waiting.seek(0)
                for idx in range(len(self.measured.pictures)):
                    self._write_panel(idx, *(np.load(self._waiting) for _ in range(4)))

    def _draw_scores(self) -> None:
        """The histogram of image scores with all thresholds."""
        measured = self.measured
        lines = {kind: pair[0] for kind, pair in self.thresholds.items() if pair[0] is not None}
        nominal, anomalous = (measured.scores[measured.labels == label] for label in (0, 1))
        with runtime.replacing(self.folder / "scores.png") as beside:
            curves.score_histogram(beside, self.title, nominal, anomalous, lines)

    def _draw_mistakes(self) -> None:
        """The contact sheet of the worst mistakes, where there are any."""
        path = self.folder / "mistakes.png"
        path.unlink(missing_ok=True)
        image_threshold, pixel_threshold = self.thresholds[self.judged_by]
        limit = np.inf if pixel_threshold is None else pixel_threshold
        sections = {}
        for label, what in ((0, "false alarms, highest score first"), (1, "missed defects, lowest score first")):
            tiles = [
                (
                    f"{self.measured.scores[one.idx]:.3f} {self.measured.name(one.idx)}",
                    one.image,
                    one.mask,
                    one.anomaly_map > limit,
                )
                for one in self.measured.most_wrong(label)
                if self._predicted(one.idx) not in (None, bool(label))
            ]
            if tiles:
                sections[what] = tiles
        if sections and self.config.metrics.misclassifications:
            with runtime.replacing(path) as beside:
                judged = f"{self.title}: worst mistakes at {self.judged_by}, image threshold {image_threshold:.3f}"
                image_io.write_image(beside, panels.contact_sheet(judged, sections))

    def _draw_curves(self) -> None:
        """ROC, precision-recall, PRO and IoU figures, as far as they are asked for and defined; their points."""
        thresholds = dict(zip(("image", "pixel"), self.thresholds[self.judged_by], strict=True))
        measured, wanted = self.measured, self.config.metrics
        levels = {
            "image": metrics.image_curves(measured.labels, measured.scores),
            "pixel": measured.pixels.curves(),
        }
        levels = {level: curve for level, curve in levels.items() if curve is not None}
        points = {f"{level}_{key}": values for level, curve in levels.items() for key, values in curve.items()}
        with runtime.replacing(self.folder / CURVES) as beside:
            np.savez_compressed(beside, **{key: values.astype(np.float32) for key, values in points.items()})
        for name, is_wanted, x, y, drawn in (
            ("roc", wanted.auroc, "fpr", "tpr", ("image", "pixel")),
            ("precision_recall", wanted.pr, "tpr", "precision", ("image", "pixel")),
            ("pro", wanted.pro, "fpr", "pro", ("pixel",)),
            ("iou", wanted.iou, "threshold", "iou", ("pixel",)),
        ):
            path = self.folder / f"{name}.png"
            path.unlink(missing_ok=True)
            lines = {level: levels[level] for level in drawn if level in levels}
            if not is_wanted or not lines:
                continue
            marked = {level: (thresholds[level], self.judged_by) for level in lines if thresholds[level] is not None}
            with runtime.replacing(path) as beside:
                curves.curves(beside, name, self.title, x, y, lines, marked)


def _write_panel(path: Path, *content: Any) -> None:
    with runtime.replacing(path) as beside:
        image_io.write_image(beside, panels.panel(*content))
