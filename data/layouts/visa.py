"""VisA as downloaded: Data/Images/Normal and Anomaly with Data/Masks below each category, split by split_csv/1cls.csv.

Without that file a share of the nominal images is held out for the test. Source: Zou et al., SPot-the-Difference
self-supervised pre-training for anomaly detection and segmentation, ECCV 2022.
"""

from pathlib import Path

from data.folders import images_below, normalize_name
from data.layouts.category import GOOD, Listing, check_there, sample
from data.layouts.table import SPLITS, read_rows, require_columns
from data.layouts.tree import require
from data.mask_files import fold
from data.mask_matching import and_n_more
from runtime.errors import UserError
from runtime.names import as_on_disk, composed

SPLIT = "split_csv/1cls.csv"
IMAGES, MASKS = "Data/Images", "Data/Masks/Anomaly"
NORMAL, ANOMALY = "normal", "anomaly"  # labels


def fits(folder: Path) -> bool:
    """Whether a category's folder has Data/Images."""
    return (folder / IMAGES).is_dir()


def read(data_path: Path, category: str) -> Listing:
    """The images of a category, as split by the table, or without a split."""
    folder, file = Path(as_on_disk(f"{data_path}/{category}")), data_path / SPLIT
    if file.is_file():
        rows = read_rows(file)
        require_columns(file, rows, ["object", "split", "label", "image", "mask"])
        if rows := [row for row in rows if composed(row["object"]) == category]:
            return _split_by(file, rows, data_path, folder)
    require("visa", folder, [f"{IMAGES}/Normal", f"{IMAGES}/Anomaly", MASKS])
    of_stem = {fold(mask.stem): mask for mask in images_below(folder / MASKS)}
    anomalous = images_below(folder / IMAGES / "Anomaly")
    if missing := [path for path in anomalous if fold(path.stem) not in of_stem]:
        raise UserError(f"{missing[0]}{and_n_more(missing)}", f"has no mask in {MASKS}", "add it")
    test = [sample(folder, path, ANOMALY, [of_stem[fold(path.stem)]]) for path in anomalous]
    return Listing(folder, images_below(folder / IMAGES / "Normal"), test, has_split=False)


def _split_by(file: Path, rows: list[dict[str, str]], data_path: Path, folder: Path) -> Listing:
    """The images that the table's rows of a category name."""
    check_there([data_path / row["image"] for row in rows], file)
    check_there([data_path / row["mask"] for row in rows if row["mask"]], file, "masks")
    nominal, test = [], []
    for row in rows:
        path, split = data_path / row["image"], SPLITS.get(normalize_name(row["split"]))
        label = normalize_name(row["label"])
        is_anomalous = label == ANOMALY
        if split not in ("train", "test") or label not in (NORMAL, ANOMALY) or (is_anomalous and split == "train"):
            raise UserError(
                file, f"{row['image']} has split {row['split']} and label {row['label']}", "use the table as downloaded"
            )
        if is_anomalous != bool(row["mask"]):
            mask = f"the mask {row['mask']}" if row["mask"] else "no mask"
            raise UserError(file, f"{row['image']} has label {row['label']} and {mask}", "use the table as downloaded")
        if split == "train":
            nominal.append(path)
        else:
            test.append(
                sample(folder, path, ANOMALY if is_anomalous else GOOD, [data_path / row["mask"]] * is_anomalous)
            )
    return Listing(folder, nominal, test)
