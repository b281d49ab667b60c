"""The folder of results of one checkpoint and technique: metrics, lists, curves and panels."""

import json
import math
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from config import Config
from data import image_io
from data.mvtec import TestSample
from evaluation import image_metrics
from evaluation.thresholds import KINDS, OPTIMAL, Thresholds
from inference.threshold_file import NominalThresholds
from reporting import curves, panels, report, tables
from reporting.measurements import Measurements
from reporting.paper import defects
from runtime import provenance
from runtime.csv_file import write_csv
from runtime.device import select_device
from runtime.files import Background, atomic_folder, atomic_write, naming, remove_leftovers, write_text
from runtime.json_file import read_json
from runtime.provenance import Provenance
from runtime.version import program_version

if TYPE_CHECKING:
    from inference.detect import NetworkOutput

MADE_WITH = "made_with.json"
CURVES = "curves.npz"


class Record(NamedTuple):
    """The record of complete results: made_with.json.

    Attributes:
        thresholds: the kinds that metrics were computed at. content: all of the file.
    """

    made_from: Provenance
    thresholds: list[str]
    content: dict[str, Any]


def read_record(folder: Path) -> Record | None:
    """The record of complete results; None where there are none, or of another version of this program."""
    try:
        content = read_json(folder / MADE_WITH)
        made_from = Provenance.from_json(content["provenance"])
        kinds = [kind for kind in content["thresholds"] if kind in KINDS]  # others would be folders anywhere
        used: dict[str, Any] = {"checkpoint_file": str, "seconds": (int, float), "images": int, "settings": dict}
        is_sound = all(isinstance(content.get(key), types) for key, types in used.items())
        return Record(made_from, kinds, content) if made_from and is_sound else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Result:
    """Writes the folder of results of one technique, image by image.

    To be used in a `with`: the files are written to a folder beside, which replaces the earlier one when the block ends
    without an error; otherwise the earlier results stay.

    Args:
        folder: where to write. samples: in the dataset's order.
        nominal: thresholds of nominal images; None for `optimal` only. kinds: of thresholds to evaluate.
        made_from: what the results depend on, kept with them.

    Attributes:
        thresholds: kind -> thresholds. main_kind: the kind that lists, panels and figures use.
        notes: shown with the metrics; lists stand in the JSON only.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        samples: Sequence[TestSample],
        nominal: NominalThresholds | None,
        kinds: Sequence[str],
        made_from: Provenance,
    ):
        self.config, self._final = config, folder
        self.measured = Measurements(samples, config.metrics.optimal)
        self._nominal = nominal or NominalThresholds({})
        nominal_kinds = [kind for kind in kinds if kind != OPTIMAL] if nominal else []
        self.thresholds = {kind: self._nominal.by_kind[kind] for kind in nominal_kinds}
        preferred = [config.metrics.threshold_type, *nominal_kinds]
        self.main_kind = next((kind for kind in preferred if kind in self.thresholds), OPTIMAL)
        self.kinds, self.made_from = list(kinds), made_from
        self.notes: dict[str, Any] = {}
        self._areas: dict[int, float] = {}  # of each image the share of pixels above the pixel threshold, where known
        self.title = f"{config.data.category}, {folder.parent.name}, {folder.name}"
        self._background = Background()  # panels

    def __enter__(self) -> "Result":
        remove_leftovers(self._final.parent)
        self._beside = atomic_folder(self._final)
        self.folder = self._beside.__enter__()
        # Thresholds of the test set are known after its last image only; until then panels wait on the disk.
        can_draw = self.main_kind != OPTIMAL or self.config.metrics.visualisation == "none"
        self._waiting = None if can_draw else tempfile.TemporaryFile(dir=self.folder)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._waiting:
            self._waiting.close()
        if error[0]:
            self._background.cancel()
        self._beside.__exit__(*error)

    def update(self, found: "NetworkOutput") -> None:
        """Add an image."""
        self.measured.update(found)
        self._view(found)
        could_be_wanted = self._waiting and self.config.metrics.visualisation == "errors"  # known at the end only
        if not could_be_wanted and not self._wants_panel(found.idx):
            return
        # Images need 8 bits to be drawn; the map keeps its precision, as it is still to be compared with a threshold.
        arrays = (panels.eight_bit(found.image), panels.eight_bit(found.reconstruction), found.anomaly_map, found.mask)
        if self._waiting:
            with naming(self.folder):
                for array in (found.idx, *arrays):
                    np.save(self._waiting, array)
        else:
            self._write_panel(found.idx, *arrays)

    def _view(self, found: "NetworkOutput") -> None:
        """Write the small images that the report shows, in the background."""
        threshold = self.thresholds[self.main_kind].pixel if self.main_kind in self.thresholds else None
        if threshold is not None:
            self._areas[found.idx] = float((found.anomaly_map > threshold).mean())
        if not self._has_view(found.idx):
            return
        planes = (panels.eight_bit(one) for one in (found.image, found.reconstruction, found.anomaly_map))
        self._background.do(report.write_view, self.folder, self._files(found.idx), *planes, found.mask)

    def _has_view(self, idx: int) -> bool:
        wanted = self.config.metrics.visualisation  # which ones are errors depends on the threshold set in the report
        return wanted in ("all", "errors") or self._wants_panel(idx)

    def _files(self, idx: int) -> dict[str, str | None]:
        sample = self.measured.samples[idx]
        return report.view_files(sample.name_in_test, bool(sample.masks))

    def finish(self, seconds: float, weights_file: Path) -> str:
        """Write metrics, lists, curves and the remaining panels; the metrics as a table.

        Args:
            seconds: that inference took. weights_file: the checkpoint.
        """
        measured = self.measured
        self.thresholds[OPTIMAL] = measured.optimal_thresholds()
        self.notes |= measured.notes()
        columns = {kind: measured.metrics_at(found) for kind, found in self.thresholds.items() if kind in self.kinds}
        if difference := measured.compared_with(self._nominal.image_scores):
            self.notes["nominal_test"] = difference
        for values in columns.values():
            if warning := measured.warning(values):
                self.notes["masks_not_found"] = warning
        columns = measured.with_intervals(columns)
        of_defects = defects.over_all_thresholds(measured)
        for kind, values in columns.items():
            rows = defects.at_threshold(of_defects, measured, self.thresholds[kind].image)
            reasons = measured.reasons(kind, values) | self._threshold_notes(kind, values)
            content = values | {"notes": self.notes | reasons}
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
            write_text(self.folder / kind / "metrics.json", text)
            tables_of_kind = filter(None, (self._table({kind: values}), defects.text(rows)))
            write_text(self.folder / kind / "metrics.txt", "\n\n".join(tables_of_kind) + "\n")
            write_csv(self.folder / kind / defects.FILE, defects.cells(rows))
        self._write_lists()
        self._draw_curves()
        self._draw_scores()
        self._draw_mistakes()
        self._write_waiting_panels()
        self._write_report(weights_file, defects.for_page(of_defects))
        self._background.wait()
        self._write_record(seconds, weights_file)
        return self._table(columns)

    def _threshold_notes(self, kind: str, values: dict[str, Any]) -> dict[str, str]:
        """The false-positive rate to expect of a threshold; an infinite one becomes None, with the reason."""
        notes = {}
        rate = self._nominal.false_positive_rates.get(kind)
        if rate and self._nominal.held_out is not False:
            notes["promise"] = rate
        for key in ("image_threshold", "pixel_threshold"):
            if values[key] is not None and math.isinf(values[key]):
                values[key] = None
                notes[key] = "infinite: too few held-out images for max_false_alarms, nothing is called anomalous"
        return notes

    def _write_record(self, seconds: float, weights_file: Path) -> None:
        """Write the record, keeping earlier metrics at other thresholds of the same weights, images and settings."""
        earlier, kinds, made_from = read_record(self._final), list(self.kinds), self.made_from
        if earlier and not earlier.made_from.differences(made_from):
            for kind in earlier.thresholds:
                if kind not in kinds and (self._final / kind).is_dir():
                    shutil.copytree(self._final / kind, self.folder / kind)
                    kinds.append(kind)
            if made_from.nominal is None:
                made_from = replace(made_from, nominal=earlier.made_from.nominal, settings=earlier.made_from.settings)
        content = {"provenance": made_from.to_json(), "thresholds": kinds, "images": len(self.measured.samples)}
        content |= {"seconds": round(seconds, 3), "checkpoint_file": weights_file.as_posix()}
        content |= {"checkpoint_state": provenance.file_state(weights_file), "program_version": program_version()}
        content |= {"node": socket.gethostname(), "device": str(select_device(self.config.train.device))}
        content |= {"settings": self.config.model_dump(mode="json")}
        write_text(self.folder / MADE_WITH, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _table(self, columns: dict[str, dict[str, Any]]) -> str:
        table = tables.metrics_table(columns, self.notes)
        if OPTIMAL in columns:
            table += "\nnote: the thresholds `optimal` are chosen on the test set: optimistic"
        return table

    def _predicted(self, idx: int) -> bool | None:
        threshold = self.thresholds[self.main_kind].image
        return None if threshold is None else bool(self.measured.scores[idx] > threshold)

    def _write_lists(self) -> None:
        measured, rows = self.measured, []
        for idx, (label, score) in enumerate(zip(measured.labels, measured.scores, strict=True)):
            predicted = self._predicted(idx)
            aupimo = measured.aupimo[idx]
            cells = ["" if predicted is None else int(predicted), "" if math.isnan(aupimo) else repr(float(aupimo))]
            rows.append([measured.name(idx), int(label), repr(float(score)), *cells])
        wrong = [row for row in rows if row[3] not in ("", row[1])]
        lists = {"scores.csv": rows, "misclassified.csv": wrong if self.config.metrics.misclassifications else None}
        for name, content in lists.items():
            if content is not None:
                write_csv(self.folder / name, [["path", "label", "score", "prediction", "aupimo"], *content])

    def _wants_panel(self, idx: int) -> bool:
        wanted, count = self.config.metrics.visualisation, len(self.measured.samples)
        if wanted == "errors":
            return self._predicted(idx) not in (None, bool(self.measured.labels[idx]))
        if isinstance(wanted, int):  # evenly over all folders
            return idx in np.linspace(0, count - 1, min(wanted, count)).astype(int)
        return wanted == "all"

    def _write_panel(
        self, idx: int, image: np.ndarray, reconstruction: np.ndarray, anomaly_map: np.ndarray, mask: np.ndarray
    ) -> None:
        sample = self.measured.samples[idx]
        predicted, thresholds = self._predicted(idx), self.thresholds[self.main_kind]
        is_correct = None if predicted is None else predicted == sample.has_anomaly
        verdict = f"score {self.measured.scores[idx]:.3f}"
        if predicted is not None:
            word, sign = ("anomalous", ">") if predicted else ("nominal", "<=")
            right = "correct" if is_correct else "WRONG"
            verdict = f"{word}: {verdict} {sign} {thresholds.image:.3f} ({self.main_kind}), {right}"
        path = self.folder / "panels" / report.png_name(sample.name_in_test)
        above = anomaly_map > (np.inf if thresholds.pixel is None else thresholds.pixel)
        truth = mask if sample.masks or not sample.has_anomaly else None
        title = f"{self.config.data.category}/{self.measured.name(idx)}"
        content = panels.PanelContent(
            title, verdict, is_correct, image, reconstruction, panels.eight_bit(anomaly_map), truth, above
        )
        self._background.do(_write_panel, path, content)

    def _write_waiting_panels(self) -> None:
        if not self._waiting:
            return
        end = self._waiting.tell()
        self._waiting.seek(0)
        while self._waiting.tell() < end:
            idx, *arrays = (np.load(self._waiting) for _ in range(5))
            if self._wants_panel(int(idx)):
                self._write_panel(int(idx), *arrays)

    def _write_report(self, weights_file: Path, of_defects: list[defects.Row]) -> None:
        measured = self.measured
        shown = [
            report.Shown(
                name=measured.name(idx),
                folder=sample.kind,
                label=int(sample.has_anomaly),
                score=float(measured.scores[idx]),
                area=self._areas.get(idx),
                **({"path": str(sample.path.absolute())} | (self._files(idx) if self._has_view(idx) else {})),
            )
            for idx, sample in enumerate(measured.samples)
        ]
        thresholds = self._nominal.by_kind | self.thresholds
        about = f"{len(shown)} test images; the page opens with {self.main_kind}. Weights: {weights_file.name}."
        curves = report.curves_of(self._levels())
        page = report.Page(self.title, about, shown, thresholds, self.main_kind, curves, of_defects)
        report.write_page(self.folder, page)

    def _draw_scores(self) -> None:
        """The histogram of image scores with all thresholds."""
        measured = self.measured
        values = {kind: found.image for kind, found in self.thresholds.items()}
        lines = {kind: value for kind, value in values.items() if value is not None and value < math.inf}
        nominal, anomalous = (measured.scores[measured.labels == label] for label in (0, 1))
        with atomic_write(self.folder / "scores.png") as beside:
            curves.score_histogram(beside, self.title, nominal, anomalous, lines)

    def _draw_mistakes(self) -> None:
        """The contact sheet of the worst mistakes, where there are any."""
        thresholds = self.thresholds[self.main_kind]
        limit = np.inf if thresholds.pixel is None else thresholds.pixel
        sections = {}
        for label, what in ((0, "false positives, highest score first"), (1, "false negatives, lowest score first")):
            wrong = self.measured.most_wrong(label)
            wrong = [one for one in wrong if self._predicted(one.idx) not in (None, bool(label))]
            captions = [f"{self.measured.scores[one.idx]:.3f} {self.measured.name(one.idx)}" for one in wrong]
            if wrong:
                sections[what] = [
                    (caption, one.image, one.mask, one.anomaly_map > limit)
                    for caption, one in zip(captions, wrong, strict=True)
                ]
        if sections and self.config.metrics.misclassifications:
            with atomic_write(self.folder / "mistakes.png") as beside:
                title = f"{self.title}: worst mistakes at {self.main_kind}, image threshold {thresholds.image:.3f}"
                image_io.write_image(beside, panels.contact_sheet(title, sections))

    def _levels(self) -> dict[str, dict[str, np.ndarray]]:
        """Curves of images and of pixels, as far as they are defined."""
        levels = {
            "image": image_metrics.image_curves(self.measured.labels, self.measured.scores),
            "pixel": self.measured.pixels.curves(),
        }
        return {level: curve for level, curve in levels.items() if curve is not None}

    def _draw_curves(self) -> None:
        """ROC, precision-recall, PRO and IoU figures, as far as they are asked for and defined; their points."""
        measured, wanted = self.measured, curves.wanted_kinds(self.config.metrics)
        levels = self._levels()
        points = {f"{level}_{key}": values for level, curve in levels.items() for key, values in curve.items()}
        with atomic_write(self.folder / CURVES) as beside:
            np.savez_compressed(beside, **{key: one.astype(np.float32) for key, one in points.items()})  # type: ignore[arg-type]
        values = measured.metrics_at(Thresholds("none", None, None))
        curves.draw_all(self.folder, self.title, levels, values, self.thresholds[self.main_kind], wanted)


def _write_panel(path: Path, content: panels.PanelContent) -> None:
    with atomic_write(path) as beside:
        image_io.write_image(beside, panels.panel(content))
