"""DRAEM from the command line: check the data, train, compute thresholds, detect, run on new images, use feedback."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave this folder out

from runtime.cli import DONE, FAULT, Parser, add_config_flags, boolean, is_launched, matching, path, run

if TYPE_CHECKING:
    from config import Config
    from training.distributed import ProcessGroup

EXAMPLE = "python main.py --train True --threshold True --detection True --set data.category=bottle"


def main() -> int:
    """Parse the command line and run the modes that are asked for."""
    parser = Parser(
        prog="main.py",
        description="DRAEM: train on defect-free images, compute thresholds, detect and outline defects.\n"
        "Several modes at once run in the order check, train, threshold, detection, feedback, predict,\nexport, watch.",
        epilog=f"example: {EXAMPLE}\nevery setting is explained in config.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for mode, what, example in (
        ("check", "check images, masks, folders and settings, and estimate the training time", "--check True"),
        ("train", "train with synthetic anomalies; resumes an interrupted run", "--train True"),
        ("threshold", "compute thresholds from held-out nominal images", "--threshold True --set data.load_epoch=700"),
        ("detection", "detect on test/: metrics, curves, panels", "--detection True --set metrics.threshold_type=max"),
    ):
        parser.add_argument(
            f"--{mode}",
            type=boolean,
            nargs="?",
            const=True,
            default=False,
            metavar="True|False",
            help=f"{what} (e.g. python main.py {example})",
        )
    parser.add_argument(
        "--predict",
        type=path,
        nargs="+",
        metavar="PATH",
        help="run inference on images, or on all in a folder (e.g. python main.py --predict photos/)",
    )
    parser.add_argument(
        "--export",
        metavar="FORMAT",
        help="write the trained model for other programs: onnx, openvino, openvino-int8 (e.g. main.py --export onnx)",
    )
    parser.add_argument(
        "--watch",
        type=path,
        metavar="FOLDER",
        help="run inference on images as they come into a folder (e.g. python main.py --watch camera/)",
    )
    parser.add_argument(
        "--nominal",
        type=path,
        metavar="FOLDER",
        help="with --threshold: thresholds from these nominal images, for --predict, --watch and --export "
        "(e.g. python main.py --threshold True --nominal station2/)",
    )
    parser.add_argument(
        "--feedback",
        type=path,
        metavar="FILE",
        help="say what marks of people mean, saved by the report (e.g. python main.py --feedback feedback.csv)",
    )
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="with --feedback: thresholds from held-out and marked nominal images, for --predict, --watch and --export",
    )
    parser.add_argument(
        "--learn",
        action="store_true",
        help="with --feedback: train on with images marked as false alarms, as a new run, and compare both",
    )
    parser.add_argument("--output", type=path, metavar="DIR", help="with --predict or --watch: folder to write to")
    parser.add_argument("--resume", action="store_true", help="with --predict: continue an earlier call")
    add_config_flags(parser)
    arguments = parser.parse_args()
    modes = ("check", "train", "threshold", "detection", "feedback", "predict", "export", "watch")
    if not any(getattr(arguments, mode) for mode in modes):
        flags = ("nominal", "recalibrate", "learn", "output", "resume")
        given = ", ".join(f"--{flag}" for flag in flags if getattr(arguments, flag))
        parser.error(f"no mode asked for{given and f' ({given} is none)'}; for example: {EXAMPLE}")
    if arguments.nominal and not arguments.threshold:
        parser.error("--nominal FOLDER goes with --threshold True")
    if arguments.resume and not arguments.predict:
        parser.error("--resume goes with --predict PATH")
    if arguments.recalibrate and not arguments.feedback:
        parser.error("--recalibrate goes with --feedback FILE")
    if arguments.learn and not arguments.feedback:
        parser.error("--learn goes with --feedback FILE")
    if arguments.output and bool(arguments.predict) == bool(arguments.watch):
        more = ", not with both" if arguments.watch else ""
        parser.error(f"--output goes with --predict PATH or with --watch FOLDER{more}")

    from config_file import load_config
    from runtime.device import setup

    setup()
    config = load_config(arguments.config, arguments.set)
    with together(config) as group:
        return _run(arguments, config, group)


def _run(arguments: argparse.Namespace, config: "Config", group: "ProcessGroup | None") -> int:
    """Run the modes in order. All processes train, compute thresholds and detect; the other modes run in the first."""
    is_first = group is None or group.is_first
    if arguments.export and is_first:
        from engine import export

        export.check_format(arguments.export)  # before what takes hours
    if arguments.check and is_first:
        from engine import check

        check.run(config)
    if arguments.train:
        from config_file import settings_text
        from engine import train

        if is_first:
            _check_inputs(arguments, config)
        print(f"checkpoint: {train.run(config, settings_text(arguments.config, config), group)}")
    if arguments.threshold:
        from engine import threshold

        if group:
            group.barrier()  # wait until the first process has written the checkpoint
        if not arguments.nominal:
            print(f"thresholds: {threshold.run(config, group)}")
        elif is_first:
            print(f"thresholds: {threshold.run_on(config, arguments.nominal)}")
            config = config.with_values({"metrics.nominal": threshold.nominal_name(arguments.nominal)})
    if arguments.detection:
        from engine import detection

        if group:
            group.barrier()
        print(f"results: {detection.run(config, group)}")
    if not is_first:
        return DONE
    status = DONE
    if arguments.feedback:
        config, is_better = _feedback(arguments, config)
        status = DONE if is_better else FAULT
    if arguments.predict:
        from engine import predict

        folder, failed = predict.run(config, matching(arguments.predict), arguments.output, arguments.resume)
        print(f"predictions: {folder}")
        status = FAULT if failed else status
    if arguments.export:
        from engine import export

        print(f"export: {export.run(config, arguments.export)}")
    if arguments.watch:
        from engine import watch

        print(f"predictions: {watch.run(config, arguments.watch, arguments.output)}")
    return status


def _check_inputs(arguments: argparse.Namespace, config: "Config") -> None:
    """UserError where what later modes read is not there. Called before a training, which can take hours."""
    from data.layouts.registry import open_category
    from engine import predict, watch
    from engine.feedback import marks
    from reporting.predictions import check_folder
    from runtime.errors import UserError
    from training.data import find_files, split

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the modes print their notes
        if arguments.detection:
            open_category(config).test()
        if folders := [*([arguments.nominal] if arguments.nominal else []), *matching(arguments.predict or [])]:
            predict.find(folders)
        if arguments.feedback:
            marks.read(arguments.feedback)
        if arguments.watch:
            watch.check_folder(arguments.watch)
        if arguments.output:
            check_folder(arguments.output, is_new=bool(arguments.predict) and not arguments.resume)
        if arguments.export == "openvino-int8" and not split(config, find_files(config)).held_out:
            problem, fix = (
                "no images are held out, which show what 8 bits lose",
                "set data.val_split above 0, or use --export openvino",
            )
            raise UserError("--export openvino-int8", problem, fix)


def _feedback(arguments: argparse.Namespace, config: "Config") -> tuple["Config", bool]:
    """What marks mean, and what is made of them; the settings for the modes that follow, and whether it is better."""
    from engine.feedback import learn, recalibrate, review

    reviewed = review.run(config, arguments.feedback)
    print(f"feedback: {reviewed.folder}")
    if arguments.recalibrate:
        print(f"thresholds: {recalibrate.run(reviewed)}")
        config = config.with_values({"metrics.nominal": review.name_of(arguments.feedback)})
    is_better = True
    if arguments.learn:
        path, is_better = learn.run(config, arguments.config, reviewed)
        print(f"checkpoint: {path}")
    return config, is_better


@contextmanager
def together(config: "Config") -> Iterator["ProcessGroup | None"]:
    """The group of processes that were started together; None for a single process."""
    if not is_launched():
        yield None
        return
    from runtime.device import select_device
    from training.distributed import ProcessGroup

    uses_cuda = select_device(config.train.device).type == "cuda"
    with (
        ProcessGroup(uses_cuda) as group,
        open(os.devnull, "w") as nowhere,
        redirect_stdout(sys.stdout if group.is_first else nowhere),  # only the first prints
    ):
        yield group


if __name__ == "__main__":
    run(main, is_shared=True)
