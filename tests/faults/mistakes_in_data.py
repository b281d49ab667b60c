"""A table of mistakes that users make: in datasets. See mistakes.py."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from conftest import write
from faults.mistakes import Mistake, held_out

TILE = "mvtec/tile"
RUN = "checkpoints/tile/tiny"
THRESHOLDS = f"{RUN}/thresholds/checkpoint_2/no_masking.json"
REVIEW = "results/tiny/tile/checkpoint_2/feedback"
GRAY = np.full((40, 48, 3), 99, np.uint8)


def put(path: str, content: str | bytes) -> Callable[[Path], object]:
    """Write a file."""

    def make(w: Path) -> None:
        (w / path).parent.mkdir(parents=True, exist_ok=True)
        (w / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def image(path: str, array: np.ndarray = GRAY) -> Callable[[Path], object]:
    return lambda w: write(w / path, array)


def remove(*paths: str) -> Callable[[Path], object]:
    def make(w: Path) -> None:
        for path in paths:
            shutil.rmtree(w / path) if (w / path).is_dir() else (w / path).unlink()

    return make


def move(path: str, to: str) -> Callable[[Path], object]:
    def make(w: Path) -> None:
        (w / to).parent.mkdir(parents=True, exist_ok=True)
        (w / path).rename(w / to)

    return make


def cut(*paths: str) -> Callable[[Path], object]:
    """Keep the first half of files."""

    def make(w: Path) -> None:
        for path in paths:
            os.truncate(w / path, (w / path).stat().st_size // 2)

    return make


def replace(path: str, old: str, new: str) -> Callable[[Path], object]:
    def make(w: Path) -> None:
        text = (w / path).read_text(encoding="utf-8")
        assert old in text
        (w / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return make


def both(*makers: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda w: [make(w) for make in makers]


def pages(path: str) -> Callable[[Path], object]:
    """A TIFF file of two pages."""

    def make(w: Path) -> None:
        cv2.imwritemulti(str(w / path), [GRAY, GRAY])

    return make


def table(text: str) -> Callable[[Path], object]:
    return put("mvtec/gear.csv", text)


def coco(**changes: object) -> Callable[[Path], object]:
    """Annotations of an image of the category, with other content."""
    content = {
        "images": [{"id": 1, "file_name": "tile/train/good/000.png", "height": 40, "width": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "dent"}],
    }
    return put("mvtec/lids.json", json.dumps(content | changes))


CHECK, TRAIN = "main --check", "main --train --set data.run_name=new"
DETECT = "main --detection --set metrics.threshold=false --set data.run_name=tiny"
WHOLE = f"{TRAIN} --set data.val_split=0 --set train.batch_size=7"  # of seven images
TABLE = f"{CHECK} --set data.table=mvtec/gear.csv --set data.category=gear"
COCO = f"{CHECK} --set data.coco=mvtec/lids.json --set data.category=lids"
FIRST = f"{TILE}/train/good/000.png"
SPOT, SPOT_MASK = f"{TILE}/test/spot/001.png", f"{TILE}/ground_truth/spot/001_mask.png"
HEAD = "path,split,label,mask\n"

DATA = {
    "a category that no folder can be called": Mistake(
        "train_all --set data.table=parts.csv",
        ("parts.csv",),
        put("parts.csv", f"path,split,label,category\n{FIRST},train,good,a\0b\n"),
    ),
    "no dataset": Mistake(TRAIN, ("data.data_path", "make_sample.py"), remove("mvtec")),
    "no nominal images": Mistake(
        TRAIN, ("train/good",), both(remove(f"{TILE}/train/good"), put(f"{TILE}/train/good/a.txt", "x"))
    ),
    "nominal images that are a file": Mistake(
        TRAIN, ("train/good",), both(remove(f"{TILE}/train/good"), put(f"{TILE}/train/good", "x"))
    ),
    "images directly in train": Mistake(
        TRAIN, ("train", "train/good"), both(remove(f"{TILE}/train/good"), image(f"{TILE}/train/0.png"))
    ),
    "images directly in test": Mistake(CHECK, ("test/0.png", "test/good"), image(f"{TILE}/test/0.png")),
    "no test images": Mistake(DETECT, ("tile/test",), remove(f"{TILE}/test")),
    "no textures": Mistake(TRAIN, ("data.anomaly_source_path", "fetch_dtd"), remove("textures")),
    "textures without images": Mistake(
        TRAIN, ("data.anomaly_source_path",), both(remove("textures"), put("textures/a.txt", "x"))
    ),
    "a training image of text": Mistake(TRAIN, ("good/000.png",), put(FIRST, "no image")),
    "a training image of zero bytes": Mistake(TRAIN, ("good/000.png",), put(FIRST, b"")),
    "a training image that is cut off": Mistake(TRAIN, ("good/000.png",), cut(FIRST)),
    "a training image of two pages": Mistake(WHOLE, ("good/9.tif", "2 pages"), pages(f"{TILE}/train/good/9.tif")),
    "a training image that is a folder": Mistake(
        TRAIN, ("train/good",), both(remove(f"{TILE}/train/good"), put(f"{TILE}/train/good/0.png/x", "x"))
    ),
    "a link to nowhere": Mistake(
        WHOLE, ("9.png",), lambda w: (w / f"{TILE}/train/good/9.png").symlink_to("nowhere.png")
    ),
    "a broken texture": Mistake(TRAIN, ("textures/kind",), put("textures/kind/0.jpg", "x")),
    "a broken test image": Mistake(DETECT, ("spot/001.png",), put(SPOT, "x")),
    "a broken mask": Mistake(DETECT, ("001_mask.png",), put(SPOT_MASK, "x")),
    "a mask of another size": Mistake(
        DETECT, ("001_mask.png", "4 x 4", "48 x 40"), image(SPOT_MASK, np.zeros((4, 4), np.uint8))
    ),
    "a mask that is a photo": Mistake(
        DETECT,
        ("001_mask.png",),
        image(SPOT_MASK, np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)),
    ),
    "a mask of one gray": Mistake(DETECT, ("001_mask.png", "99"), image(SPOT_MASK)),
    "a mask that is missing": Mistake(DETECT, ("spot/001.png", "001_mask.png"), remove(SPOT_MASK)),
    "masks of other names": Mistake(
        CHECK,
        ("ground_truth/spot",),
        lambda w: [p.rename(p.with_name(f"m{p.name}")) for p in (w / f"{TILE}/ground_truth/spot").iterdir()],
    ),
    "a mask of a nominal image": Mistake(
        CHECK,
        ("good/000_mask.png",),
        image(f"{TILE}/ground_truth/good/000_mask.png", np.eye(40, 48, dtype=np.uint8) * 255),
    ),
    "two folders of masks": Mistake(
        CHECK,
        ("gt", "masks", "ground_truth"),
        both(move(f"{TILE}/ground_truth", f"{TILE}/gt"), image(f"{TILE}/masks/spot/001.png")),
    ),
    "a folder of masks misspelt": Mistake(
        CHECK, ("spott", "spot"), move(f"{TILE}/ground_truth/spot", f"{TILE}/ground_truth/spott")
    ),
    "masks in test": Mistake(CHECK, ("test",), move(f"{TILE}/ground_truth/spot", f"{TILE}/test/masks")),
    "images that are too bright": Mistake(
        f"{WHOLE} --set data.white_level=255",
        ("good/9.png",),
        image(f"{TILE}/train/good/9.png", np.full((40, 48), 4000, np.uint16)),
    ),
    "16-bit images without a white": Mistake(
        WHOLE, ("train/good", "data.white_level"), image(f"{TILE}/train/good/9.png", np.full((40, 48), 9, np.uint16))
    ),
    "held-out images that were removed": Mistake(
        "main --threshold",
        ("last.pt", "held out"),
        lambda w: (w / f"{TILE}/train/good/{held_out(w)[0]:03}.png").unlink(),
    ),
    "a table that is not there": Mistake(TABLE, ("gear.csv",)),
    "a table that is empty": Mistake(TABLE, ("gear.csv",), table("")),
    "a table without paths": Mistake(TABLE, ("gear.csv", "path"), table("file,label\na.png,good\n")),
    "a table without rows": Mistake(TABLE, ("gear.csv",), table(HEAD)),
    "a table with a row too long": Mistake(TABLE, ("gear.csv", "row 2"), table(f"{HEAD}a.png,train,good,,x\n")),
    "a table of missing images": Mistake(TABLE, ("gear.csv", "a.png"), table(f"{HEAD}a.png,train,good,\n")),
    "a table with an unknown split": Mistake(
        TABLE, ("gear.csv", "'trian'", "train"), table(f"{HEAD}tile/train/good/000.png,trian,good,\n")
    ),
    "a table that names an image twice": Mistake(
        TABLE, ("gear.csv", "000.png", "twice"), table(HEAD + "tile/train/good/000.png,train,good,\n" * 2)
    ),
    "a table without a label": Mistake(
        TABLE, ("gear.csv", "000.png", "label"), table(f"{HEAD}tile/train/good/000.png,train,,\n")
    ),
    "a table with a missing mask": Mistake(
        TABLE, ("gear.csv", "m.png"), table(f"{HEAD}tile/test/spot/000.png,test,dent,m.png\n")
    ),
    "a table in another encoding": Mistake(
        TABLE, ("gear.csv", "UTF-8"), put("mvtec/gear.csv", f"{HEAD}Prüfung.png,train,good,".encode("cp1252"))
    ),
    "a table with a NUL": Mistake(TABLE, ("gear.csv",), put("mvtec/gear.csv", b"path,label\na\0b.png,good\n")),
    "an image as a table": Mistake(f"{CHECK} --set data.table={FIRST}", ("000.png",)),
    "annotations that are not there": Mistake(COCO, ("data.coco", "lids.json")),
    "annotations that are cut off": Mistake(COCO, ("lids.json",), both(coco(), cut("mvtec/lids.json"))),
    "annotations of another form": Mistake(COCO, ("lids.json", "COCO"), put("mvtec/lids.json", "[1, 2]")),
    "annotations without images": Mistake(COCO, ("lids.json",), coco(images=[])),
    "annotations of missing images": Mistake(
        COCO, ("lids.json", "no.png"), coco(images=[{"id": 1, "file_name": "no.png", "height": 40, "width": 48}])
    ),
    "annotations of unlisted images": Mistake(
        COCO, ("lids.json", "7"), coco(annotations=[{"image_id": 7, "bbox": [1, 1, 2, 2]}])
    ),
    "a polygon of two corners": Mistake(
        COCO, ("lids.json", "000.png"), coco(annotations=[{"image_id": 1, "segmentation": [[1, 1, 2, 2]]}])
    ),
    "run lengths of another size": Mistake(
        COCO,
        ("lids.json", "000.png"),
        coco(annotations=[{"image_id": 1, "segmentation": {"size": [9, 9], "counts": [81]}}]),
    ),
    "annotations nested too deep": Mistake(COCO, ("lids.json",), put("mvtec/lids.json", "[" * 100_000)),
    "two folders of which one is missing": Mistake(
        f"{CHECK} --set data.nominal_folder={TILE}/train/good --set data.anomalous_folder=no --set data.category=lid",
        ("no",),
    ),
    "two folders of which one is not set": Mistake(
        f"{CHECK} --set data.anomalous_folder={TILE}/test/spot --set data.category=lid", ("data.nominal_folder",)
    ),
}
