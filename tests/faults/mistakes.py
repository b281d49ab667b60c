"""A table of mistakes that users make: in settings and on command lines. Those in files: mistakes_in_files.py.

A row needs nothing of the program but its behavior: it does not say why, only what the message has to name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Mistake(NamedTuple):
    """A mistake, made in a workplace that is trained, with thresholds, results and predictions.

    Attributes:
        command: program and arguments, as in a shell; run in the workplace's folder.
        named: what the message has to name: the file, key or flag, and where it helps the value.
        make: what is done to the workplace before; None for nothing.
        environment: variables; None removes one.
        leaves: folder of what a mode before it has finished; empty for nothing.
    """

    command: str
    named: tuple[str, ...]
    make: Callable[[Path], object] | None = None
    environment: dict[str, str | None] | None = None
    leaves: str = ""


def settings(text: str) -> Callable[[Path], object]:
    """Write a second settings file, own.yaml."""
    return lambda w: (w / "own.yaml").write_text(text, encoding="utf-8")


def settings_bytes(data: bytes) -> Callable[[Path], object]:
    return lambda w: (w / "own.yaml").write_bytes(data)


OWN = "main --check --config config.yaml --config own.yaml"

SETTINGS = {
    "image size that is no multiple of 32": Mistake(
        "main --train --set data.img_size=50", ("data.img_size = 50", "32")
    ),
    "image size of 0": Mistake("main --check --set data.img_size=0", ("data.img_size = 0",)),
    "image size of three numbers": Mistake("main --check --set data.img_size=[32,32,32]", ("data.img_size",)),
    "tile larger than the image": Mistake("main --check --set data.tile_size=64", ("data.tile_size = 64", "img_size")),
    "overlap of 1": Mistake("main --check --set data.tile_overlap=1", ("data.tile_overlap = 1", "0.75")),
    "batch size below 0": Mistake("main --train --set train.batch_size=-2", ("train.batch_size = -2", "1")),
    "batch size beyond what is allowed": Mistake(
        "main --train --set train.batch_size=1000000", ("train.batch_size = 1000000",)
    ),
    "no epochs": Mistake("main --train --set train.epochs=0", ("train.epochs = 0",)),
    "epochs in words": Mistake("main --train --set train.epochs=many", ("train.epochs = 'many'",)),
    "a fraction of an epoch": Mistake("main --train --set train.epochs=1.5", ("train.epochs = 1.5",)),
    "learning rate above 1": Mistake("main --train --set train.learning_rate=10", ("train.learning_rate = 10", "1")),
    "learning rate that is not a number": Mistake("main --train --set train.learning_rate=.nan", ("learning_rate",)),
    "learning rate in quotes": Mistake(OWN, ("own.yaml", "learning_rate"), settings("train: {learning_rate: '1e-4'}")),
    "unknown device": Mistake("main --train --set train.device=gpu", ("train.device = 'gpu'", "cuda")),
    "a GPU that is not there": Mistake("main --train --set train.device=cuda:7", ("train.device", "cuda")),
    "unknown precision": Mistake("main --train --set train.precision=fp8", ("train.precision = 'fp8'", "fp32")),
    "unknown schedule": Mistake("main --train --set train.lr_schedule=cosine", ("train.lr_schedule = 'cosine'",)),
    "seed below 0": Mistake("main --train --set train.seed=-1", ("train.seed = -1",)),
    "share of held-out images that leaves none": Mistake(
        "main --train --set data.run_name=new --set data.val_split=0.99", ("data.val_split = 0.99", "6")
    ),
    "share of held-out images above 1": Mistake("main --train --set data.val_split=20", ("data.val_split = 20", "1")),
    "expression without a group": Mistake(
        "main --check --set data.split_by=part", ("data.split_by = 'part'", "brackets")
    ),
    "malformed expression": Mistake("main --check --set data.split_by=(part", ("data.split_by", "regular expression")),
    "expression that matches no file": Mistake(
        "main --check --set data.split_by=(shift[0-9])", ("data.split_by", "good/000.png")
    ),
    "category with a slash": Mistake("main --check --set data.category=../tile", ("data.category = '../tile'",)),
    "category ..": Mistake("main --check --set data.category=..", ("data.category = '..'",)),
    "category that is empty": Mistake("main --check --set data.category=", ("data.category",)),
    "misspelt category": Mistake("main --train --set data.category=tyle", ("data.category = tyle", "tile")),
    "run name that is a path": Mistake("main --train --set data.run_name=a/b", ("data.run_name = 'a/b'",)),
    "run name of another type": Mistake(
        OWN, ("own.yaml", "data.run_name", "'2024'"), settings("data: {run_name: 2024}")
    ),
    "unknown key": Mistake("main --check --set train.epoch=3", ("--set train.epoch", "train.epochs")),
    "unknown section": Mistake(OWN, ("own.yaml", "training", "train"), settings("training: {epochs: 3}\n")),
    "key of another section": Mistake(
        OWN, ("own.yaml", "model.epochs", "train.epochs"), settings("model: {epochs: 3}")
    ),
    "key without its section": Mistake("main --check --set epochs=3", ("epochs", "train.epochs")),
    "--set without =": Mistake("main --check --set train.epochs", ("--set train.epochs", "section.key=value")),
    "--set of an empty number": Mistake("main --check --set train.epochs=", ("train.epochs",)),
    "--set with a list that is not closed": Mistake("main --check --set data.img_size=[32", ("--set data.img_size",)),
    "settings that are a list": Mistake(OWN, ("own.yaml", "data"), settings("- data\n- train\n")),
    "settings that are a text": Mistake(OWN, ("own.yaml", "data"), settings("train 100 epochs")),
    "section that is a number": Mistake(OWN, ("own.yaml", "train = 5"), settings("train: 5\n")),
    "settings with a tab": Mistake(OWN, ("own.yaml", "line 2"), settings("data:\n\tcategory: tile\n")),
    "settings with a bracket too few": Mistake(OWN, ("own.yaml", "line 3"), settings("data:\n  img_size: [32, 32\n")),
    "a key twice": Mistake(OWN, ("own.yaml", "epochs"), settings("train:\n  epochs: 3\n  epochs: 4\n")),
    "settings with an unknown anchor": Mistake(OWN, ("own.yaml", "here"), settings("data: *here\n")),
    "settings with a Python object": Mistake(
        OWN, ("own.yaml", "line 1"), settings("data: !!python/object/apply:os.system ['touch ran']\n")
    ),
    "settings in another encoding": Mistake(
        OWN, ("own.yaml",), settings_bytes("data: {run_name: Prüfung}".encode("cp1252"))
    ),
    "settings with a NUL": Mistake(OWN, ("own.yaml",), settings_bytes(b"data: {run_name: a\0b}")),
    "an image as settings": Mistake("main --check --config mvtec/tile/train/good/000.png", ("good/000.png",)),
    "text in a NUL-terminated form": Mistake(OWN, ("own.yaml", "run_name"), settings('data: {run_name: "a\\0b"}')),
    "path with a NUL": Mistake(OWN, ("own.yaml", "data.data_path"), settings('data: {data_path: "a\\0b"}')),
    "run name of 300 letters": Mistake(f"main --train --set data.run_name={'x' * 300}", ("data.run_name",)),
    "path of 5,000 letters": Mistake(f"main --train --set data.data_path={'x' * 5000}", ("data.data_path",)),
    "data_path that is a file": Mistake(
        "main --train --set data.data_path=config.yaml", ("data.data_path", "config.yaml")
    ),
    "data_path that is not there": Mistake("main --train --set data.data_path=nowhere", ("data.data_path", "nowhere")),
    "data_path that is the category": Mistake(
        "main --train --set data.data_path=mvtec/tile", ("data.data_path", "mvtec")
    ),
    "textures that are not there": Mistake(
        "main --check --set data.anomaly_source_path=nowhere", ("data.anomaly_source_path", "nowhere")
    ),
    "textures that are the dataset": Mistake(
        "main --check --set data.anomaly_source_path=mvtec", ("data.anomaly_source_path", "mvtec")
    ),
    "checkpoint_path that is a file": Mistake("main --train --set data.checkpoint_path=config.yaml", ("config.yaml",)),
    "results_path that is a file": Mistake("main --detection --set data.results_path=config.yaml", ("config.yaml",)),
    "epoch 0": Mistake("main --detection --set data.load_epoch=0", ("data.load_epoch", "1, 2")),
    "epoch that was not saved": Mistake(
        "main --detection --set data.load_epoch=7", ("data.load_epoch", "epoch_0007.pt", "1, 2")
    ),
    "checkpoint that is a folder": Mistake(
        "main --detection --set data.load_epoch=mvtec", ("data.load_epoch", "mvtec is a folder")
    ),
    "other widths than those of the training": Mistake(
        "main --detection --set model.base_width=8", ("model.base_width", "8", "4")
    ),
    "other tiles than those of the training": Mistake(
        "main --threshold --set data.img_size=64 --set data.tile_size=32", ("data.tile_size",)
    ),
    "another size of images when training goes on": Mistake(
        "main --train --set data.img_size=64", ("last.pt", "data.img_size = [32, 32]", "[64, 64]")
    ),
    "manual thresholds that are not set": Mistake(
        "main --detection --set metrics.threshold_type=manual", ("metrics.image_threshold", "manual")
    ),
    "threshold above 1": Mistake("main --detection --set metrics.image_threshold=7", ("metrics.image_threshold = 7",)),
    "unknown kind of threshold": Mistake(
        "main --detection --set metrics.threshold_type=otsu", ("metrics.threshold_type = 'otsu'", "k_sigma")
    ),
    "percentile above 100": Mistake("main --threshold --set metrics.p=101", ("metrics.p = 101", "100")),
    "masking without a region": Mistake("main --detection --set metrics.masking=true", ("masking.regions", "tile")),
    "rectangle that is turned": Mistake(
        "main --detection --set metrics.masking=true --set masking.regions.tile=[9,3,0,5]", ("masking.regions.tile",)
    ),
    "rectangle outside of the image": Mistake(
        "main --threshold --set metrics.masking=true --set masking.regions.tile=[0,9,900,950]", ("masking.regions",)
    ),
    "region whose mask is not there": Mistake(
        "main --threshold --set metrics.masking=true --set masking.regions.tile=no.png", ("no.png",)
    ),
    "region of another category's mask type": Mistake(
        "main --detection --set masking.regions=5", ("masking.regions = 5",)
    ),
    "registered training without registration": Mistake(
        "main --train --set data.registration_training=true", ("data.registration_training", "data.image_registration")
    ),
    "reference that is not there": Mistake(
        "main --threshold --set data.image_registration=true --set data.registration_reference=no.png",
        ("data.registration_reference", "no.png"),
    ),
    "unknown layout": Mistake("main --check --set data.layout=yolo", ("data.layout = 'yolo'", "mvtec")),
    "layout that the dataset does not have": Mistake("main --check --set data.layout=visa", ("visa",)),
    "white level of 0": Mistake("main --check --set data.white_level=0", ("data.white_level = 0",)),
    "start from a checkpoint that is not there": Mistake(
        "main --train --set data.run_name=new --set train.start_from=no.pt", ("train.start_from = no.pt",)
    ),
    "resume without a state": Mistake(
        "main --train --set data.run_name=new --set train.resume=must", ("train.resume = must", "last.pt")
    ),
    "engine without an export": Mistake(
        "main --predict mvtec/tile/test --set inference.engine=openvino", ("inference.engine",)
    ),
    "engine for detection": Mistake("main --detection --set inference.engine=openvino", ("inference.engine",)),
    "unknown engine": Mistake(
        "main --predict mvtec/tile/test --set inference.engine=trt", ("inference.engine = 'trt'",)
    ),
    "nominal images without thresholds": Mistake(
        "main --feedback feedback.csv --set metrics.nominal=station9", ("station9", "--threshold True")
    ),
    "keys that are the same as texts": Mistake(
        OWN, ("data.anomalous_folder",), settings("data:\n anomalous_folder: {true: 1, !!binary true: 2}\n")
    ),
    "workers below 0": Mistake("main --train --set data.num_workers=-1", ("data.num_workers = -1",)),
}

COMMAND_LINE = {
    "no mode": Mistake("main", ("--train True",)),
    "every mode off": Mistake("main --train False --check False", ("--train True",)),
    "neither True nor False": Mistake("main --train maybe", ("--train", "maybe", "True")),
    "unknown flag": Mistake("main --trane", ("--trane", "--help")),
    "a value too many": Mistake("main --check True now", ("now",)),
    "a flag without its value": Mistake("main --check --set", ("--set",)),
    "settings that are not there": Mistake("main --check --config no.yaml", ("no.yaml", "--config")),
    "settings that are a folder": Mistake("main --check --config mvtec", ("mvtec",)),
    "--predict without a path": Mistake("main --predict", ("--predict",)),
    "--predict of what is not there": Mistake("main --predict photos", ("photos",)),
    "--predict of a pattern without a match": Mistake("main --predict 'mvtec/*.bmp'", ("mvtec/*.bmp",)),
    "--predict of an empty folder": Mistake("main --predict empty", ("empty",), lambda w: (w / "empty").mkdir()),
    "--predict of a path with a variable": Mistake(
        "main --predict '$NO_SUCH_PLACE/a'", ("--predict", "$NO_SUCH_PLACE")
    ),
    "predictions within the images": Mistake("main --predict mvtec --output mvtec/out", ("mvtec/out", "--output")),
    "predictions into a file": Mistake(
        "main --predict mvtec/tile/test --output config.yaml", ("config.yaml", "--output")
    ),
    "predictions among other files": Mistake(
        "main --predict mvtec/tile/test --output textures/kind", ("textures", "--output")
    ),
    "predictions where there are some": Mistake("main --predict mvtec/tile/test --output out", ("out", "--resume")),
    "--resume of other images": Mistake(
        "main --predict mvtec/tile/train --output out --resume", ("out", "other images", "--output")
    ),
    "--resume with other settings": Mistake(
        "main --predict mvtec/tile/test --output out --resume --set metrics.p=50 --set metrics.threshold=false",
        ("out", "--resume"),
    ),
    "--resume without --predict": Mistake("main --train --resume", ("--resume", "--predict")),
    "--output without --predict": Mistake("main --train --output out", ("--output", "--predict")),
    "--output for two modes": Mistake("main --predict mvtec --watch mvtec --output out", ("--output", "--watch")),
    "--nominal without --threshold": Mistake("main --detection --nominal mvtec", ("--nominal", "--threshold")),
    "--nominal of what is not there": Mistake("main --threshold --nominal station9", ("station9",)),
    "--nominal of training images": Mistake(
        "main --threshold --nominal mvtec/tile/train/good",
        ("--nominal mvtec/tile/train/good",),
        lambda w: [(w / f"mvtec/tile/train/good/{n:03}.png").unlink() for n in held_out(w)],
    ),
    "unknown format": Mistake("main --export tflite", ("--export tflite", "onnx")),
    "format without a value": Mistake("main --export", ("--export",)),
    "--watch of what is not there": Mistake("main --watch camera", ("--watch camera",)),
    "--watch of a file": Mistake("main --watch config.yaml", ("--watch config.yaml",)),
    "--watch that writes where it reads": Mistake("main --watch mvtec --output mvtec/out", ("mvtec/out", "--output")),
    "--watch into other files": Mistake(
        "main --watch mvtec/tile/test --output textures/kind", ("textures", "--output")
    ),
    "--feedback of what is not there": Mistake("main --feedback no.csv", ("--feedback no.csv",)),
    "--feedback of a folder": Mistake("main --feedback mvtec", ("--feedback mvtec",)),
    "--recalibrate without --feedback": Mistake("main --recalibrate --train", ("--recalibrate", "--feedback")),
    "--learn without --feedback": Mistake("main --learn --train", ("--learn", "--feedback")),
    "train_all of an unknown category": Mistake("train_all --categories tyle", ("--categories tyle", "tile")),
    "train_all of a path": Mistake("train_all --categories ../tile", ("--categories ../tile",)),
    "train_all without categories": Mistake("train_all --categories", ("--categories",)),
    "train_all with a seed in words": Mistake("train_all --seeds one", ("--seeds", "one")),
    "train_all with a seed below 0": Mistake("train_all --seeds -1", ("--seeds", "-1")),
    "train_all on a GPU that is not there": Mistake("train_all --set train.device=cuda:7", ("train.device", "cuda")),
    "train_all with no cores": Mistake("train_all --ray local --cpus_per_job 0", ("--cpus_per_job 0",)),
    "train_all with half of a GPU too many": Mistake(
        "train_all --ray local --gpus_per_job 1.5", ("--gpus_per_job 1.5",)
    ),
    "train_all with retries below 0": Mistake("train_all --ray local --max_retries -1", ("--max_retries -1",)),
    "train_all from outside of a cluster": Mistake("train_all --ray ray://host:1", ("--ray ray://host:1",)),
    "evaluate of an epoch in words": Mistake("evaluate_checkpoints --checkpoints best", ("--checkpoints best",)),
    "evaluate of epoch 0": Mistake("evaluate_checkpoints --checkpoints 0", ("--checkpoints 0",)),
    "evaluate of an unknown technique": Mistake("evaluate_checkpoints --maskings both", ("--maskings", "both", "post")),
    "evaluate of an unknown threshold": Mistake("evaluate_checkpoints --thresholds otsu", ("--thresholds", "otsu")),
    "evaluate of an unknown category": Mistake("evaluate_checkpoints --categories tyle", ("--categories tyle", "tile")),
    "evaluate of a category with ..": Mistake("evaluate_checkpoints --categories ..", ("--categories ..",)),
    "evaluate without registration in words": Mistake(
        "evaluate_checkpoints --registrations no", ("--registrations", "no")
    ),
    "checkpoints among the images": Mistake(
        "main --train --set data.checkpoint_path=mvtec/tile/train/good", ("data.checkpoint_path", "mvtec/tile/train")
    ),
    "results among the images": Mistake(
        "main --detection --set data.results_path=mvtec/tile/test/new", ("data.results_path", "mvtec/tile/test")
    ),
    "results among the textures": Mistake(
        "main --train --set data.results_path=textures/results", ("data.results_path", "textures")
    ),
    "--learn alone": Mistake("main --learn", ("--learn", "--train True")),
    "--resume alone": Mistake("main --resume", ("--resume", "--train True")),
    "--output of detection": Mistake("main --detection --output new", ("--output", "--predict")),
    "predictions after a training where there are some": Mistake(
        "main --train --predict mvtec/tile/test --output out --set data.run_name=new", ("out", "--resume")
    ),
    "predictions after a training into a file": Mistake(
        "main --train --predict mvtec/tile/test --output config.yaml --set data.run_name=new",
        ("config.yaml", "--output"),
    ),
    "evaluate of an epoch of many digits": Mistake(
        f"evaluate_checkpoints --checkpoints {'9' * 5000}", ("--checkpoints 999",)
    ),
    "evaluate on a GPU that is not there": Mistake(
        "evaluate_checkpoints --force --set train.device=cuda:7", ("train.device = cuda:7",)
    ),
    "evaluate at thresholds that are not set": Mistake(
        "evaluate_checkpoints --thresholds manual", ("metrics.image_threshold",)
    ),
    "evaluate of a run that was never trained": Mistake(
        "evaluate_checkpoints --set data.run_name=new", ("checkpoints/tile/new", "data.run_name", "tiny")
    ),
    "a name with line breaks": Mistake("main --predict 'a\nb\nc\nd.png'", ("a\\nb\\nc\\nd.png",)),
    "a flag with line breaks": Mistake("main --train 'a\nb\nc'", ("a\\nb\\nc",)),
    "a path that is too long": Mistake(f"main --predict {'x' * 5000}", ("xxx",)),
    "best of an unknown category": Mistake("check_best_model --categories tyle", ("--categories tyle", "tile")),
    "best without results": Mistake(
        "check_best_model --set data.run_name=new", ("summary.csv", "evaluate_checkpoints.py")
    ),
    "best with a mode": Mistake("check_best_model --train", ("--train", "--help")),
    "sample with an unknown flag": Mistake("make_sample --out made --images 0", ("--images", "--help")),
    "sample into a file": Mistake("make_sample --out config.yaml", ("config.yaml",)),
    "sample among other files": Mistake("make_sample --out mvtec", ("mvtec",)),
}


def held_out(workplace: Path) -> list[int]:
    """Numbers of the held-out images of train/good."""
    from inference import checkpoint

    images = checkpoint.load_metadata(workplace / "checkpoints/tile/tiny/last.pt").images
    assert images is not None
    return [int(Path(name).stem) for name in images.held_out]
