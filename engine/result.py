"""The results of one checkpoint and technique: metrics, lists, curves and panels, written into their folder."""

import heapq
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import data_loader
from config import Config
from engine import runtime
from engine.inference import Detection
from evaluation import metrics, plots

OPTIMAL = "optimal"
METRIC_KEYS = (
    *metrics.IMAGE_KEYS,
    *metrics.PIXEL_KEYS,
    *metrics.IMAGE_KEYS_AT_THRESHOLD,
    *metrics.PIXEL_KEYS_AT_THRESHOLD,
    "image_threshold",
    "pixel_threshold",
)
MADE_WITH = "made_with.json"
CURVES = "curves.npz"
MISTAKES = 8  # of each kind, on the contact sheet


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
    """All that is asked of one technique: fed picture by picture, it writes the folder of its results.

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
        pictures: list[data_loader.TestImage],
        nominal: dict[str, Any] | None,
        kinds: Sequence[str],
        made_with: dict[str, Any],
        notes: dict[str, Any],
    ):
        self.config, self.folder, self.category, self.pictures = config, folder, category, pictures
        nominal_kinds = [kind for kind in kinds if kind != OPTIMAL] if nominal else []
        self.thresholds = {kind: (nominal["image"][kind], nominal["pixel"][kind]) for kind in nominal_kinds}
        preferred = [config.metrics.threshold_type, *nominal_kinds]
        self.judged_by = next((kind for kind in preferred if kind in self.thresholds), OPTIMAL)
        self.scores = np.zeros(len(pictures))
        self.labels = np.array([int(picture.has_anomaly) for picture in pictures])
        self.pixels = metrics.PixelMetrics()
        self.kinds, self.made_with, self.notes = list(kinds), made_with, dict(notes)
        self._vanished: list[str] = []
        self._left_out = self._seen = 0
        self._panels: set[Path] = set()
        self._background = runtime.Background()  # panels
        # Nominal pictures of the highest scores and anomalous ones of the lowest: what can be on the contact sheet.
        self._extremes: tuple[list, list] = ([], [])
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

    def name(self, idx: int) -> str:
        """Path of a picture within its category."""
        return self.pictures[idx].path.relative_to(self.category).as_posix()

    def update(self, result: Detection) -> None:
        """Take in one picture."""
        picture = self.pictures[result.idx]
        self.scores[result.idx] = metrics.image_score(result.anomaly_map)
        if picture.mask_path or not picture.has_anomaly:
            self.pixels.update(result.anomaly_map, result.mask, result.valid)
        if picture.mask_path and not result.mask.any():
            self._vanished.append(self.name(result.idx))
        self._seen += result.mask.size
        if result.valid is not None:
            self._left_out += result.mask.size - int(result.valid.sum())
        self._keep_extreme(result)
        if self._waiting:
            with runtime.naming(self.folder):
                for array in (result.image, result.reconstruction, result.anomaly_map, result.mask):
                    np.save(self._waiting, array)
        else:
            self._write_panel(result)

    def _keep_extreme(self, result: Detection) -> None:
        is_anomalous = bool(self.labels[result.idx])
        score = self.scores[result.idx] * (-1 if is_anomalous else 1)
        kept = self._extremes[is_anomalous]
        if len(kept) < MISTAKES or score > kept[0][0]:
            image = (result.image * 255 + 0.5).astype(np.uint8)  # copies: views would keep whole batches
            item = (score, -result.idx, image, result.mask.copy(), result.anomaly_map.copy())
            (heapq.heappush if len(kept) < MISTAKES else heapq.heapreplace)(kept, item)

    def finish(self, seconds: float) -> str:
        """Write metrics, lists, curves and the panels still to come; the metrics as a table for people.

        seconds: that inference took.
        """
        self.thresholds[OPTIMAL] = (
            metrics.optimal_image_threshold(self.labels, self.scores),
            self.pixels.optimal_threshold(),
        )
        self._take_notes()
        over_all = metrics.image_metrics(self.labels, self.scores)
        table = {}
        for kind, (image_threshold, pixel_threshold) in self.thresholds.items():
            if kind not in self.kinds:
                continue
            values = over_all | metrics.image_metrics_at(self.labels, self.scores, image_threshold)
            values |= self.pixels.compute(pixel_threshold)
            values |= {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}
            values = table[kind] = {key: values[key] for key in METRIC_KEYS}
            reasons = {key: self._reason(key) for key, value in values.items() if value is None}
            if kind == OPTIMAL:
                reasons["thresholds"] = "chosen on the test set: optimistic"
            content = values | {"notes": self.notes | reasons}
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            runtime.write_text(self.folder / kind / "metrics.json", text)
            runtime.write_text(self.folder / kind / "metrics.txt", _table({kind: values}, self.notes) + "\n")
        self._write_lists()
        self._draw_curves()
        self._draw_scores()
        self._write_waiting_panels()
        self._background.wait()
        for path in set((self.folder / "panels").rglob("*.png")) - self._panels:
            path.unlink()  # of an earlier run
        made_with = self.made_with | {"images": len(self.pictures), "seconds": round(seconds, 3)}
        made_with |= {"settings": self.config.model_dump(mode="json")}
        runtime.write_text(self.folder / MADE_WITH, json.dumps(made_with, indent=2, allow_nan=False) + "\n")
        return _table(table, self.notes)

    def _predicted(self, idx: int) -> bool | None:
        threshold = self.thresholds[self.judged_by][0]
        return None if threshold is None else bool(self.scores[idx] > threshold)

    def _take_notes(self) -> None:
        unmasked = sum(picture.has_anomaly and not picture.mask_path for picture in self.pictures)
        if unmasked:
            self.notes["pixels"] = f"{unmasked} defect images without a mask are left out of the pixel metrics"
        if self._vanished:
            names = ", ".join(self._vanished)
            self.notes["masks"] = f"masks that vanish at this img_size (their images keep the label): {names}"
        if self._left_out:
            share = f"{self._left_out:,} of {self._seen:,} pixels ({100 * self._left_out / self._seen:.1f} %)"
            self.notes["left_out"] = f"{share} count nowhere: masked, or without a source after registration"

    def _reason(self, key: str) -> str:
        if key in (*metrics.PIXEL_KEYS, *metrics.PIXEL_KEYS_AT_THRESHOLD, "pixel_threshold"):
            if not any(picture.mask_path for picture in self.pictures):
                return "no defect image has a mask"
            return self.pixels.missing or "no threshold"
        return "test/ has no nominal image" if self.labels.all() else "test/ has no defect image"

    def _write_lists(self) -> None:
        rows = []
        for idx, (label, score) in enumerate(zip(self.labels, self.scores, strict=True)):
            predicted = self._predicted(idx)
            rows.append([self.name(idx), int(label), repr(float(score)), "" if predicted is None else int(predicted)])
        wrong = [row for row in rows if row[3] not in ("", row[1])]
        lists = {"scores.csv": rows, "misclassified.csv": wrong if self.config.metrics.misclassifications else None}
        for name, content in lists.items():
            if content is None:
                (self.folder / name).unlink(missing_ok=True)
                continue
            runtime.write_csv(self.folder / name, [["path", "label", "score", "prediction"], *content])

    def _wants_panel(self, idx: int) -> bool:
        wanted = self.config.metrics.visualisation
        if wanted == "errors":
            return self._predicted(idx) not in (None, bool(self.labels[idx]))
        if isinstance(wanted, int):  # spread over nominal and defective ones alike
            return idx in np.linspace(0, len(self.pictures) - 1, min(wanted, len(self.pictures))).astype(int)
        return wanted == "all"

    def _write_panel(self, result: Detection) -> None:
        if not self._wants_panel(result.idx):
            return
        picture = self.pictures[result.idx]
        predicted, (image_threshold, pixel_threshold) = self._predicted(result.idx), self.thresholds[self.judged_by]
        is_correct = None if predicted is None else predicted == picture.has_anomaly
        verdict = f"score {self.scores[result.idx]:.3f}"
        if predicted is not None:
            said, sign = ("anomalous", ">") if predicted else ("nominal", "<=")
            right = "correct" if is_correct else "WRONG"
            verdict = f"{said}: {verdict} {sign} {image_threshold:.3f} ({self.judged_by}), {right}"
        name = picture.path.name if picture.path.suffix == ".png" else f"{picture.path.name}.png"
        path = self.folder / "panels" / picture.path.parent.name / name
        has_truth = bool(picture.mask_path) or not picture.has_anomaly
        above = result.anomaly_map > (np.inf if pixel_threshold is None else pixel_threshold)
        arrays = (result.image, result.reconstruction, result.anomaly_map, result.mask if has_truth else None, above)
        title = f"{self.config.data.category}/{self.name(result.idx)}"
        self._background.do(_write_panel, path, title, verdict, is_correct, *arrays)
        self._panels.add(path)

    def _write_waiting_panels(self) -> None:
        if self._waiting:
            with self._waiting:
                self._waiting.seek(0)
                for idx in range(len(self.pictures)):
                    self._write_panel(Detection(idx, *(np.load(self._waiting) for _ in range(4))))

    def _draw_scores(self) -> None:
        """The histogram of image scores with all thresholds, and the contact sheet of the worst mistakes."""
        title = f"{self.config.data.category}, {self.folder.parent.name}, {self.folder.name}"
        lines = {kind: pair[0] for kind, pair in self.thresholds.items() if pair[0] is not None}
        with runtime.replacing(self.folder / "scores.png") as beside:
            plots.score_histogram(beside, title, self.scores[self.labels == 0], self.scores[self.labels == 1], lines)
        path = self.folder / "mistakes.png"
        path.unlink(missing_ok=True)
        pixel_threshold = self.thresholds[self.judged_by][1]
        limit = np.inf if pixel_threshold is None else pixel_threshold
        sections = {}
        for is_anomalous, what in ((0, "false alarms, highest score first"), (1, "missed defects, lowest score first")):
            worst = sorted(self._extremes[is_anomalous], key=lambda item: item[:2], reverse=True)
            tiles = [
                (f"{self.scores[-negative]:.3f} {self.name(-negative)}", image, mask, anomaly_map > limit)
                for _, negative, image, mask, anomaly_map in worst
                if self._predicted(-negative) not in (None, bool(is_anomalous))
            ]
            if tiles:
                sections[what] = tiles
        if sections and self.config.metrics.misclassifications:
            with runtime.replacing(path) as beside:
                judged = f"{title}: worst mistakes at {self.judged_by}, image threshold {lines[self.judged_by]:.3f}"
                plots.write_image(beside, plots.contact_sheet(judged, sections))

    def _draw_curves(self) -> None:
        """ROC, precision-recall, PRO and IoU figures, as far as they are asked for and defined."""
        image_threshold, pixel_threshold = self.thresholds[self.judged_by]
        image, pixel = metrics.image_curves(self.labels, self.scores), self.pixels.curves()
        wanted = self.config.metrics
        title = f"{self.config.data.category}, {self.folder.parent.name}, {self.folder.name}"
        with runtime.replacing(self.folder / CURVES) as beside:
            levels = {"image": image, "pixel": pixel}
            np.savez_compressed(
                beside,
                **{
                    f"{level}_{key}": values.astype(np.float32)
                    for level, curve in levels.items()
                    if curve
                    for key, values in curve.items()
                },
            )
        for name, is_wanted, x, y, levels in (
            ("roc", wanted.auroc, "fpr", "tpr", {"image": image, "pixel": pixel}),
            ("precision_recall", wanted.pr, "tpr", "precision", {"image": image, "pixel": pixel}),
            ("pro", wanted.pro, "fpr", "pro", {"pixel": pixel}),
            ("iou", wanted.iou, "threshold", "iou", {"pixel": pixel}),
        ):
            path = self.folder / f"{name}.png"
            path.unlink(missing_ok=True)
            levels = {level: curve for level, curve in levels.items() if curve is not None}
            if not is_wanted or not levels:
                continue
            points = {
                level: (threshold, self.judged_by)
                for level, threshold in (("image", image_threshold), ("pixel", pixel_threshold))
                if level in levels and threshold is not None
            }
            with runtime.replacing(path) as beside:
                plots.curves(beside, name, title, x, y, levels, points)


ROWS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1, largest",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1, largest",
    "pro": "PRO to 30 % false positives",
    "pro_05": "PRO to 5 % false positives",
    "iou_max": "IoU, largest",
    "image_threshold": "image threshold",
    "accuracy": "  accuracy",
    "image_f1_at_threshold": "  image F1",
    "true_positives": "  true positives",
    "false_positives": "  false positives",
    "true_negatives": "  true negatives",
    "false_negatives": "  false negatives",
    "pixel_threshold": "pixel threshold",
    "iou": "  IoU",
    "pixel_f1_at_threshold": "  pixel F1",
}


def _write_panel(path: Path, *content: Any) -> None:
    with runtime.replacing(path) as beside:
        plots.write_image(beside, plots.panel(*content))


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(columns: dict[str, dict[str, Any]], notes: dict[str, Any]) -> str:
    """Metrics as text, a column for each threshold type; values over all thresholds stand once."""
    lines = [f"{'':30}" + "".join(f"{kind:>14}" for kind in columns)]
    for key, label in ROWS.items():
        values = [column[key] for column in columns.values()]
        if key in (*metrics.IMAGE_KEYS, *metrics.PIXEL_KEYS):
            values = values[:1]
        lines.append(f"{label:30}" + "".join(f"{_cell(value):>14}" for value in values))
    lines += [f"note: {note}" for note in notes.values() if isinstance(note, str)]
    if OPTIMAL in columns:
        lines.append("note: the thresholds `optimal` are chosen on the test set: optimistic")
    return "\n".join(lines)
