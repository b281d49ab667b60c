"""Tiny datasets in the forms in which they are downloaded: names of folders and files, suffixes, tables."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
from conftest import write

from config import Config

SIZE = (40, 48)


def nominal(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(90, 110, (*SIZE, 3), dtype=np.uint8)


def defect(rng: np.random.Generator, value: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """An image with a bright rectangle, and its mask."""
    image, mask = nominal(rng), np.zeros(SIZE, np.uint8)
    top, left = rng.integers(4, 20, 2)
    image[top : top + 12, left : left + 14] = 240
    mask[top : top + 12, left : left + 14] = value
    return image, mask


class Writer:
    """Writes images and masks below a folder."""

    def __init__(self, root: Path):
        self.root, self.rng = root, np.random.default_rng(0)

    def nominal(self, *names: str) -> None:
        for name in names:
            write(self.root / name, nominal(self.rng))

    def defect(self, name: str, *masks: str, value: int = 255) -> None:
        image, mask = defect(self.rng, value)
        write(self.root / name, image)
        for part in masks:
            write(self.root / part, mask)

    def empty(self, *names: str) -> None:
        for name in names:
            write(self.root / name, np.zeros(SIZE, np.uint8))

    def rows(self, name: str, rows: list[tuple], delimiter: str = ",") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=delimiter).writerows(rows)


def numbered(folder: str, count: int, suffix: str, first: int = 0, digits: int = 3) -> list[str]:
    return [f"{folder}/{i:0{digits}}{suffix}" for i in range(first, first + count)]


def loco(root: Path) -> None:
    """MVTec LOCO: two categories; an image with two masks, whose values name defects of defects_config.json."""
    out = Writer(root)
    for name in ("breakfast_box", "pushpins"):
        out.nominal(*numbered(f"{name}/train/good", 6, ".png"), *numbered(f"{name}/validation/good", 2, ".png"))
        out.nominal(*numbered(f"{name}/test/good", 2, ".png"))
        truth = f"{name}/ground_truth/logical_anomalies/000"
        out.defect(f"{name}/test/logical_anomalies/000.png", f"{truth}/000.png", value=255)
        out.defect("spare.png", f"{truth}/001.png", value=254)
        out.defect(f"{name}/test/logical_anomalies/001.png", truth.replace("000", "001") + "/000.png", value=254)
        out.defect(f"{name}/test/structural_anomalies/000.png", f"{name}/ground_truth/structural_anomalies/000/000.png")
        config = [
            {"defect_name": "missing", "pixel_value": 254, "saturation_threshold": 10, "relative_saturation": False},
            {"defect_name": "scratch", "pixel_value": 255, "saturation_threshold": 1.0, "relative_saturation": True},
        ]
        (root / name / "defects_config.json").write_text(json.dumps(config))
    (root / "spare.png").unlink()


def mpdd(root: Path) -> None:
    """MPDD: the folders and names of MVTec AD."""
    out = Writer(root)
    for name in ("connector", "tubes"):
        out.nominal(*numbered(f"{name}/train/good", 7, ".png"), *numbered(f"{name}/test/good", 2, ".png"))
        for i in range(3):
            out.defect(f"{name}/test/anomalous/{i:03}.png", f"{name}/ground_truth/anomalous/{i:03}_mask.png")


def btad(root: Path) -> None:
    """BTAD: category 01 in BMP with masks in PNG, 03 with masks in BMP."""
    out = Writer(root)
    for name, masks in (("01", ".png"), ("03", ".bmp")):
        out.nominal(*numbered(f"{name}/train/ok", 7, ".bmp", digits=4))
        out.nominal(*numbered(f"{name}/test/ok", 2, ".bmp", digits=4))
        for i in range(3):
            out.defect(f"{name}/test/ko/{i:04}.bmp", f"{name}/ground_truth/ko/{i:04}{masks}")


def mvtec_ad_2(root: Path) -> None:
    """MVTec AD 2, with its private test sets."""
    out = Writer(root)
    for name in ("can", "vial"):
        out.nominal(*numbered(f"{name}/train/good", 6, "_regular.png"))
        out.nominal(*numbered(f"{name}/validation/good", 2, "_regular.png"))
        out.nominal(f"{name}/test_public/good/000_regular.png", f"{name}/test_public/good/000_overexposed.png")
        for stem in ("000_regular", "001_regular", "001_shift_1"):
            public = f"{name}/test_public"
            out.defect(f"{public}/bad/{stem}.png", f"{public}/ground_truth/bad/{stem}_mask.png")
        out.nominal(f"{name}/test_private/000_regular.png", f"{name}/test_private_mixed/000_mixed.png")


def mvtec_3d(root: Path) -> None:
    """MVTec 3D-AD: rgb, gt and xyz below good and each defect."""
    out = Writer(root)
    for name in ("bagel", "rope"):
        for part, count in (("train", 6), ("validation", 2), ("test", 2)):
            folder = f"{name}/{part}/good"
            out.nominal(*numbered(f"{folder}/rgb", count, ".png"))
            for path in numbered(f"{folder}/xyz", count, ".tiff"):
                write(root / path, np.ones((*SIZE, 3), np.float32))
            if part != "train":
                out.empty(*numbered(f"{folder}/gt", count, ".png"))
        for i in range(3):
            folder = f"{name}/test/crack"
            out.defect(f"{folder}/rgb/{i:03}.png", f"{folder}/gt/{i:03}.png")
            write(root / f"{folder}/xyz/{i:03}.tiff", np.ones((*SIZE, 3), np.float32))


def visa(root: Path, has_table: bool = True) -> None:
    """VisA: JPG images, masks in PNG whose values number the defects; with or without its tables of splits."""
    out, rows = Writer(root), [("object", "split", "label", "image", "mask")]
    for name in ("candle", "pcb1"):
        normal = numbered(f"{name}/Data/Images/Normal", 10, ".JPG", digits=4)
        out.nominal(*normal)
        rows += [(name, "train" if i < 8 else "test", "normal", path, "") for i, path in enumerate(normal)]
        for i in range(3):
            image, mask = (f"{name}/Data/{part}/Anomaly/{i:03}" for part in ("Images", "Masks"))
            out.defect(f"{image}.JPG", f"{mask}.png", value=i + 1)
            rows.append((name, "test", "anomaly", f"{image}.JPG", f"{mask}.png"))
        out.rows(
            f"{name}/image_anno.csv",
            [("image", "label", "mask"), (f"{name}/Data/Images/Normal/0000.JPG", "normal", "")],
        )
    if has_table:
        for table in ("1cls", "2cls_fewshot", "2cls_highshot"):
            out.rows(f"split_csv/{table}.csv", rows)


def kolektor_sdd(root: Path) -> None:
    """KolektorSDD: ten items of three parts, of which five have a defect; a label in BMP beside each image."""
    out = Writer(root / "KolektorSDD")
    for item in range(1, 11):
        for part in range(3):
            stem = f"kos{item:02}/Part{part}"
            if item <= 5 and part == 1:
                out.defect(f"{stem}.jpg", f"{stem}_label.bmp")
            else:
                out.nominal(f"{stem}.jpg")
                out.empty(f"{stem}_label.bmp")


def kolektor_sdd2(root: Path) -> None:
    """KolektorSDD2: train and test, each with defective images; a mask _GT beside each image."""
    out = Writer(root / "KolektorSDD2")
    for part, first, count, defects in (("train", 10000, 7, 1), ("test", 20000, 2, 3)):
        for i in range(count):
            out.nominal(f"{part}/{first + i}.png")
            out.empty(f"{part}/{first + i}_GT.png")
        for i in range(count, count + defects):
            out.defect(f"{part}/{first + i}.png", f"{part}/{first + i}_GT.png")


def dagm(root: Path) -> None:
    """DAGM 2007: Train and Test, each with defective images and their masks in Label."""
    for name in ("Class1", "Class10"):
        out = Writer(root / name)
        for part, first, count, defects in (("Train", 576, 7, 1), ("Test", 1, 2, 3)):
            out.nominal(*numbered(part, count, ".PNG", first, 4))
            lines = ["1"] + [f"{i}\t{first + i}\t0\t0\t0\t0" for i in range(count)]
            for i in range(first + count, first + count + defects):
                out.defect(f"{part}/{i:04}.PNG", f"{part}/Label/{i:04}_label.PNG")
            (root / name / part / "Label/Labels.txt").write_text("\n".join(lines))


def tables(root: Path, delimiter: str = ",") -> None:
    """Tables of two categories; the images of a group show the same part."""
    for name in ("gear", "shaft"):
        out, rows = Writer(root), [("path", "split", "label", "mask", "group")]
        for i in range(8):
            path = f"images/{name}/{i}.png"
            out.nominal(path)
            split = "test" if i < 2 else "val" if i < 4 else "train"
            rows.append((path, split, "ok", "", f"part{i // 2}"))
        for i, label in enumerate(("scratch", "scratch", "dent")):
            out.defect(f"images/{name}/bad{i}.png", f"masks/{name}/bad{i}.png")
            rows.append((f"images/{name}/bad{i}.png", "test", label, f"masks/{name}/bad{i}.png", ""))
        out.rows(f"{name}.csv", rows, delimiter)


def real_iad(root: Path) -> None:
    """Real-IAD: five views of each sample; of the defective ones some views show nothing."""
    out = Writer(root / "realiad_1024")
    for name in ("audiojack", "usb"):
        parts: dict[str, list[dict[str, object]]] = {"train": [], "test": []}

        def add(part: str, kind: str, path: str, mask: str | None, name=name, parts=parts) -> None:
            entry = {"category": name, "anomaly_class": kind, "image_path": path, "mask_path": mask}
            parts[part].append(entry)

        for sample_number, part in ((1, "train"), (2, "train"), (3, "test")):
            for view in range(1, 6):
                path = f"OK/S{sample_number:04}/{name}_{sample_number:04}_OK_C{view}_20230101000000.jpg"
                out.nominal(f"{name}/{path}")
                add(part, "OK", path, None)
        for view in range(1, 6):
            path = f"NG/HS/S0009/{name}_0009_NG_HS_C{view}_20230101000000.jpg"
            mask = path.replace(".jpg", ".png") if view <= 3 else None
            if mask:
                out.defect(f"{name}/{path}", f"{name}/{mask}")
            else:
                out.nominal(f"{name}/{path}")
            add("test", "HS" if mask else "OK", path, mask)
        meta = {"prefix": f"{name}/", "normal_class": "OK", "pre_transform": None}
        file = root / f"realiad_jsons/realiad_jsons/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"meta": meta, **parts}))


def two_folders(root: Path) -> None:
    """Two folders of one's own, with a mask beside each anomalous image."""
    out = Writer(root)
    out.nominal(*numbered("passed", 10, ".png"))
    for i in range(3):
        out.defect(f"rejected/scratch/{i}.png", f"rejected/scratch/{i}_mask.png")


def coco(root: Path, has_split: bool = False) -> None:
    """Annotations in COCO form, exported beside a folder of images: a polygon, a box and run lengths."""
    out = Writer(root)
    images, annotations = [], []
    for i in range(13):
        split = ("train" if i < 8 else "test") if has_split else None
        name = f"{split}/{i}.png" if split else f"{i}.png"
        out.nominal(f"images/{name}") if i < 10 else out.defect(f"images/{name}")
        images.append({"id": i + 100, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    annotations = [
        {"id": 1, "image_id": 110, "category_id": 1, "segmentation": [[4, 6, 14, 6, 14, 11, 4, 11]], "iscrowd": 0},
        {"id": 2, "image_id": 111, "category_id": 2, "segmentation": [], "bbox": [10, 20, 6, 3], "iscrowd": 0},
        {
            "id": 3,
            "image_id": 112,
            "category_id": 1,
            "segmentation": {"size": list(SIZE), "counts": [45, 10, SIZE[0] * SIZE[1] - 55]},
            "iscrowd": 1,
        },
    ]
    categories = [{"id": 1, "name": "crack"}, {"id": 2, "name": "hole"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/lids.json").write_text(json.dumps(content))


# ---- what tests ask of a category


def settings(root, category="bottle", **values) -> Config:
    own = {"data_path": root.as_posix(), "category": category} | values
    return Config().with_values({f"data.{key}": value for key, value in own.items()})


def kinds_of(category) -> Counter:
    return Counter(one.kind for one in category.test())


def counts_of(category) -> tuple[int, int, int, int, int]:
    """Training, validation, nominal test and anomalous test images, and how many of these have masks."""
    test = category.test()
    anomalous = [one for one in test if one.has_anomaly]
    masked = sum(bool(one.masks) for one in anomalous)
    return len(category.nominal()), len(category.validation()), len(test) - len(anomalous), len(anomalous), masked


def own_folders(root, **values) -> Config:
    folders = {"nominal_folder": f"{root}/passed", "anomalous_folder": f"{root}/rejected"}
    return settings(root, "lid", **folders | values)


def lids(root, **values) -> Config:
    return settings(root / "elsewhere", "lids", coco=f"{root}/annotations/lids.json", **values)
