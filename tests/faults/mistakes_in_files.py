"""A table of mistakes that users make: in files of earlier runs and in the environment. See mistakes.py."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from faults.mistakes import Mistake
from faults.mistakes_in_data import FIRST, REVIEW, RUN, SPOT, THRESHOLDS, TILE, TRAIN, both, cut, put, remove, replace

from reporting.predictions import COLUMNS


def thresholds(**values: object) -> Callable[[Path], object]:
    """Image thresholds of other values, in a file without a checksum."""

    def make(w: Path) -> None:
        content = json.loads((w / THRESHOLDS).read_text(encoding="utf-8"))
        del content["checksum"]
        content["image"] |= values
        (w / THRESHOLDS).write_text(json.dumps(content), encoding="utf-8")

    return make


FILES = {
    "no training": Mistake("main --threshold", ("data.load_epoch", "last.pt", "--train True"), remove("checkpoints")),
    "no last.pt": Mistake("main --threshold", ("last.pt", "1, 2"), remove(f"{RUN}/last.pt")),
    "a checkpoint that is cut off": Mistake(
        "main --detection", ("tiny/last.pt",), cut(f"{RUN}/last.pt", f"{RUN}/last_before.pt")
    ),
    "states that are cut off": Mistake(
        "main --train --set train.epochs=3",
        ("tiny/last.pt", "train.resume=never"),
        cut(f"{RUN}/last.pt", f"{RUN}/last_before.pt"),
    ),
    "a checkpoint of text": Mistake(
        "main --predict mvtec/tile/test", ("tiny/last.pt",), put(f"{RUN}/last.pt", "weights")
    ),
    "a checkpoint of zero bytes": Mistake("main --export onnx", ("tiny/last.pt",), put(f"{RUN}/last.pt", b"")),
    "an image as a checkpoint": Mistake(f"main --watch mvtec/tile/test --set data.load_epoch={FIRST}", ("000.png",)),
    "a checkpoint to start from that is cut off": Mistake(
        f"{TRAIN} --set train.start_from={RUN}/epoch_0001.pt", ("epoch_0001.pt",), cut(f"{RUN}/epoch_0001.pt")
    ),
    "one of a pair": Mistake(
        "main --detection --set data.load_epoch=a.pckl",
        ("a_seg.pckl", "pair"),
        lambda w: shutil.copy(w / f"{RUN}/last.pt", w / "a.pckl"),
    ),
    "thresholds that are missing": Mistake(
        "main --detection", ("no_masking.json", "--threshold True"), remove(THRESHOLDS)
    ),
    "thresholds that are cut off": Mistake(
        "main --detection", ("no_masking.json", "--threshold True"), cut(THRESHOLDS)
    ),
    "thresholds that were edited": Mistake(
        "main --predict mvtec/tile/test --output new",
        ("no_masking.json", "--threshold True"),
        replace(THRESHOLDS, '"p": 99.0', '"p": 50.0'),
    ),
    "thresholds of text": Mistake("main --watch mvtec/tile/test", ("no_masking.json",), put(THRESHOLDS, "{")),
    "thresholds nested too deep": Mistake("main --detection", ("no_masking.json",), put(THRESHOLDS, "[" * 100_000)),
    "thresholds that are no numbers": Mistake(
        "main --predict mvtec/tile/test --output new", ("no_masking.json", "--threshold True"), thresholds(max="nan")
    ),
    "thresholds without end": Mistake("main --detection", ("no_masking.json",), thresholds(max="-inf")),
    "thresholds of other percentiles": Mistake(
        "main --detection --set metrics.p=90", ("no_masking.json", "90.0", "--threshold True")
    ),
    "thresholds of another size": Mistake(
        "main --detection --set data.img_size=64", ("no_masking.json", "img_size = [32, 32]")
    ),
    "thresholds that are out of date": Mistake(
        "main --predict mvtec/tile/test --output new --set data.load_epoch=2",
        ("no_masking.json",),
        lambda w: shutil.copy(w / f"{RUN}/epoch_0001.pt", w / f"{RUN}/epoch_0002.pt"),
    ),
    "a log that is damaged": Mistake(
        "main --train --set train.epochs=3", ("train_log.csv",), put(f"{RUN}/train_log.csv", "epoch,loss\n1,x\n")
    ),
    "a log for best_models that is damaged": Mistake(
        "check_best_model", ("train_log.csv",), put(f"{RUN}/train_log.csv", "epoch\n1\n")
    ),
    "a summary that is missing": Mistake(
        "check_best_model", ("summary.csv", "evaluate_checkpoints.py"), remove("results/tiny/summary.csv")
    ),
    "a summary that is cut off": Mistake("check_best_model", ("summary.csv", "line"), cut("results/tiny/summary.csv")),
    "a summary without columns": Mistake(
        "check_best_model", ("summary.csv", "line 1"), put("results/tiny/summary.csv", "a,b\n1,2\n")
    ),
    "a summary with a word for a number": Mistake(
        "check_best_model",
        ("summary.csv", "line 2"),
        replace("results/tiny/summary.csv", "tile,1,no_masking,max,", "tile,1,no_masking,max,good"),
    ),
    "a summary with a row twice": Mistake(
        "check_best_model",
        ("summary.csv",),
        lambda w: (w / "results/tiny/summary.csv").write_text(
            "".join((lines := (w / "results/tiny/summary.csv").read_text().splitlines(True)) + lines[-1:])
        ),
    ),
    "a summary of infinite values": Mistake(
        "check_best_model",
        ("summary.csv", "line 2"),
        replace("results/tiny/summary.csv", "tile,1,no_masking,max,", "tile,1,no_masking,max,inf"),
    ),
    "a summary of impossible values": Mistake(
        "check_best_model",
        ("summary.csv", "line 2"),
        replace("results/tiny/summary.csv", "tile,1,no_masking,max,", "tile,1,no_masking,max,1e308"),
    ),
    "a log of impossible values": Mistake(
        "check_best_model", ("train_log.csv",), put(f"{RUN}/train_log.csv", "epoch,val_ap,val_ap_se\n1,0.5,-1e308\n")
    ),
    "predictions with line ends of their own": Mistake(
        "main --watch mvtec/tile/test --output out",
        ("out/predictions.csv", "Unix"),
        put("out/predictions.csv", ",".join(COLUMNS) + "\ra.png,0.5,,,,,,,,\r"),
    ),
    "a folder in place of an earlier checkpoint": Mistake(
        "main --train --set train.resume=never",
        ("epoch_0003.pt", "folder"),
        lambda w: (w / f"{RUN}/epoch_0003.pt").mkdir(),
    ),
    "a folder in place of the times": Mistake(
        "train_all --set data.run_name=new",
        ("training_times.txt",),
        lambda w: (w / "checkpoints/training_times.txt").mkdir(),
    ),
    "a mark of a folder": Mistake(
        "main --feedback feedback.csv",
        ("feedback.csv, line 2", "no file"),
        put("feedback.csv", "path,mark\nmvtec,nominal\n"),
    ),
    "a mark of a path that is too long": Mistake(
        "main --feedback feedback.csv",
        ("feedback.csv, line 2", "xxx"),
        put("feedback.csv", f"path,mark\n{'x' * 5000},nominal\n"),
    ),
    "predictions whose record is cut off": Mistake(
        "main --predict mvtec/tile/test --output out --resume", ("out",), cut("out/made_with.json")
    ),
    "predictions whose record is a list": Mistake(
        "main --predict mvtec/tile/test --output out --resume", ("out",), put("out/made_with.json", "[]")
    ),
    "marks without columns": Mistake(
        "main --feedback feedback.csv", ("feedback.csv, line 1", "path"), put("feedback.csv", "a,b\n1,2\n")
    ),
    "marks of an unknown word": Mistake(
        "main --feedback feedback.csv",
        ("feedback.csv, line 2", "mark = fine"),
        put("feedback.csv", f"path,mark\n{FIRST},fine\n"),
    ),
    "marks of a missing image": Mistake(
        "main --feedback feedback.csv",
        ("feedback.csv, line 2", "no.png"),
        put("feedback.csv", "path,mark\nno.png,nominal\n"),
    ),
    "marks without a path": Mistake(
        "main --feedback feedback.csv", ("feedback.csv, line 2",), put("feedback.csv", "path,mark\n,nominal\n")
    ),
    "two marks of an image": Mistake(
        "main --feedback feedback.csv",
        ("feedback.csv, line 3", "line 2"),
        put("feedback.csv", f"path,mark\n{SPOT},nominal\n{SPOT},anomalous\n"),
    ),
    "no marks": Mistake("main --feedback feedback.csv", ("feedback.csv",), put("feedback.csv", "path,mark\n")),
    "marks in another encoding": Mistake(
        "main --feedback feedback.csv",
        ("feedback.csv", "UTF-8"),
        put("feedback.csv", "path,mark\nPrüfung.png,nominal\n".encode("cp1252")),
    ),
    "marks with a NUL": Mistake(
        "main --feedback feedback.csv", ("feedback.csv",), put("feedback.csv", "path,mark\na\0.png,nominal\n")
    ),
    "thresholds from anomalous marks": Mistake(
        "main --feedback feedback.csv --recalibrate",
        ("feedback.csv", "nominal"),
        put("feedback.csv", f"path,mark\n{SPOT},anomalous\n"),
        leaves=REVIEW,
    ),
    "learning from one false alarm": Mistake(
        "main --feedback feedback.csv --learn",
        ("feedback.csv", "2"),
        put("feedback.csv", f"path,mark,verdict\n{TILE}/test/good/000.png,nominal,anomalous\n"),
        leaves=REVIEW,
    ),
}


def _file_as(name: str) -> Callable[[Path], object]:
    return put(name, "a file")


LAUNCHED: dict[str, str | None] = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
ENVIRONMENT = {
    "a variable that is not set": Mistake(
        "main --check --set data.data_path=$NO_SUCH_PLACE/a",
        ("data.data_path", "$NO_SUCH_PLACE"),
        None,
        {"NO_SUCH_PLACE": None},
    ),
    "a variable in --config": Mistake(
        "main --check --config '${NO_SUCH_PLACE}/a.yaml'",
        ("--config", "${NO_SUCH_PLACE}"),
        None,
        {"NO_SUCH_PLACE": None},
    ),
    "a rank in words": Mistake("main --train", ("RANK",), None, {"RANK": "first", "WORLD_SIZE": "1"}),
    "more ranks than the world has": Mistake(
        "main --train", ("RANK",), None, {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "3"}
    ),
    "a launcher without an address": Mistake(
        "main --train",
        ("MASTER_ADDR",),
        None,
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": None, "MASTER_PORT": None},
    ),
    "a launcher for another program": Mistake(
        "train_all", ("torchrun", "main.py"), None, {"RANK": "0", "WORLD_SIZE": "1"}
    ),
    "a folder for a file of settings": Mistake(
        "main --check --config own.yaml", ("own.yaml",), lambda w: (w / "own.yaml").mkdir()
    ),
    "a link to itself as settings": Mistake(
        "main --check --config own.yaml", ("own.yaml",), lambda w: (w / "own.yaml").symlink_to("own.yaml")
    ),
    "a pipe for a checkpoint": Mistake(
        "main --detection --set data.load_epoch=pipe.pt", ("pipe.pt",), lambda w: os.mkfifo(w / "pipe.pt")
    ),
    "a pipe for an image": Mistake("main --predict pipe.png", ("pipe.png",), lambda w: os.mkfifo(w / "pipe.png")),
    "a pipe for a mask of regions": Mistake(
        "main --threshold --set metrics.masking=true --set masking.regions.tile=pipe.png",
        ("pipe.png",),
        lambda w: os.mkfifo(w / "pipe.png"),
    ),
    "a pipe for settings": Mistake(
        "main --train --config own.yaml", ("own.yaml", "pipe"), lambda w: os.mkfifo(w / "own.yaml")
    ),
    "a link to nowhere for predictions": Mistake(
        "main --predict mvtec/tile/test --output gone",
        ("gone", "--output"),
        lambda w: (w / "gone").symlink_to("nowhere"),
    ),
    "a link to nowhere for the sample": Mistake(
        "make_sample --out gone", ("gone", "--out"), lambda w: (w / "gone").symlink_to("nowhere")
    ),
    "a limit of OpenCV in words": Mistake(
        "main --check", ("OPENCV_IO_MAX_IMAGE_PIXELS = many",), None, {"OPENCV_IO_MAX_IMAGE_PIXELS": "many"}
    ),
    "a pipe for marks": Mistake("main --feedback pipe", ("--feedback pipe",), lambda w: os.mkfifo(w / "pipe")),
    "a pipe for a table": Mistake(
        "main --check --set data.table=pipe.csv", ("pipe.csv",), lambda w: os.mkfifo(w / "pipe.csv")
    ),
    "a pipe for the record of predictions": Mistake(
        "main --predict mvtec/tile/test --output out --resume",
        ("out",),
        both(remove("out/made_with.json"), lambda w: os.mkfifo(w / "out/made_with.json")),
    ),
    "a link to itself as images": Mistake("main --predict loop", ("loop",), lambda w: (w / "loop").symlink_to("loop")),
    "a link to itself for predictions": Mistake(
        "main --predict mvtec/tile/test --output loop", ("loop",), lambda w: (w / "loop").symlink_to("loop")
    ),
    "a link to itself as the dataset": Mistake(
        "main --check --set data.data_path=loop", ("loop",), lambda w: (w / "loop").symlink_to("loop")
    ),
    "a port that does not exist": Mistake(
        "main --train", ("MASTER_PORT = 99999",), None, LAUNCHED | {"MASTER_PORT": "99999"}
    ),
    "a world without processes": Mistake("main --train", ("WORLD_SIZE = 0",), None, LAUNCHED | {"WORLD_SIZE": "0"}),
    "a machine without a name": Mistake("main --train", ("MASTER_ADDR",), None, LAUNCHED | {"MASTER_ADDR": ""}),
    "a machine that does not exist": Mistake(
        "main --train", ("MASTER_ADDR = no-such.invalid",), None, LAUNCHED | {"MASTER_ADDR": "no-such.invalid"}
    ),
    "a rank of many digits": Mistake("main --train", ("RANK = 999",), None, LAUNCHED | {"RANK": "9" * 5000}),
    "processes of a machine in words": Mistake(
        f"{TRAIN} --set data.num_workers=auto --set train.epochs=40",
        ("LOCAL_WORLD_SIZE = x",),
        None,
        {"LOCAL_WORLD_SIZE": "x"},
    ),
    "no processes on a machine": Mistake(
        f"{TRAIN} --set data.num_workers=auto --set train.epochs=40",
        ("LOCAL_WORLD_SIZE = 0",),
        None,
        {"LOCAL_WORLD_SIZE": "0"},
    ),
    "a file in place of the run": Mistake(TRAIN, ("new",), _file_as("checkpoints/tile/new")),
    "a file in place of the cache": Mistake(
        TRAIN, (".decoded",), both(remove("checkpoints/.decoded"), _file_as("checkpoints/.decoded"))
    ),
    "a file in place of thresholds": Mistake(
        "main --threshold", ("thresholds",), both(remove(f"{RUN}/thresholds"), _file_as(f"{RUN}/thresholds"))
    ),
    "a file in place of the export": Mistake("main --export onnx", ("export",), _file_as(f"{RUN}/export")),
    "a folder in place of a checkpoint": Mistake(
        "main --detection --set data.load_epoch=1",
        ("epoch_0001.pt",),
        both(remove(f"{RUN}/epoch_0001.pt"), lambda w: (w / f"{RUN}/epoch_0001.pt").mkdir()),
    ),
    "a folder in place of the summary": Mistake(
        "check_best_model",
        ("summary.csv",),
        both(remove("results/tiny/summary.csv"), lambda w: (w / "results/tiny/summary.csv").mkdir()),
    ),
    "a folder in place of the log": Mistake(
        "main --train --set train.epochs=3",
        ("train_log.csv",),
        both(remove(f"{RUN}/train_log.csv"), lambda w: (w / f"{RUN}/train_log.csv").mkdir()),
        leaves=RUN,
    ),
    "a folder in place of thresholds": Mistake(
        "main --detection", ("no_masking.json",), both(remove(THRESHOLDS), lambda w: (w / THRESHOLDS).mkdir())
    ),
}
