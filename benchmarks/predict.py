"""--predict: 200 pictures against the networks' own time, and the first verdict of a fresh process."""

import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import torch

from benchmarks import common
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision


def main() -> None:
    """Time main.py --predict on pictures of a made-up category, in turn with the forward passes that it makes."""
    flags = common.arguments(__doc__, runs=3, width=128, channels=64, size=256, images=200, side=256)
    common.header(
        f"--predict, {flags.images} pictures {flags.side} x {flags.side}, networks at {flags.size}, per picture"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = common.make_dataset(root, min(flags.side, 512), 6, flags.images, 0, textures=3)
        photos = root / "mvtec/made_up/test/good"
        if flags.side > 512:
            for path in photos.iterdir():
                cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (flags.side, flags.side)))
        settings += [f"model.base_width={flags.width}", f"model.base_channels={flags.channels}", "train.epochs=1"]
        settings += [f"data.img_size={flags.size}", "train.batch_size=2"]
        command = common.python(common.ROOT / "main.py", *(word for one in settings for word in ("--set", one)))
        subprocess.run([*command, "--train", "--threshold"], check=True, capture_output=True)

        device = select_device("auto")
        precision = select_precision("auto", device)
        network = optimized(DRAEM(flags.width, flags.channels), device, precision)
        x = torch.rand(8, 3, flags.size, flags.size, device=device).to(precision)
        x = x.contiguous(memory_format=memory_format(device, precision))

        def networks() -> None:
            with torch.inference_mode():
                for _ in range(flags.images // 8):
                    network(x)

        def predict(pictures: Path) -> list[str]:
            return [*command, "--predict", str(pictures), "--output", str(root / "out")]

        def first_row() -> float:
            """Seconds from the start of a process to its first row."""
            rows, start = root / "out/predictions.csv", time.perf_counter()
            rows.unlink(missing_ok=True)
            process = subprocess.Popen(
                predict(next(photos.iterdir())), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            while not rows.is_file() or rows.read_text().count("\n") < 2:
                assert process.poll() in (None, 0), process.stderr.read()
                time.sleep(0.01)
            taken = time.perf_counter() - start
            process.communicate()
            return taken

        times, first = {"the networks alone": [], "--predict, whole process": []}, []
        for run in range(flags.runs + 1):
            alone = common.seconds(networks) / flags.images
            whole = common.seconds(lambda: subprocess.run(predict(photos), check=True, capture_output=True))
            taken = first_row()
            if run:
                times["the networks alone"].append(alone)
                times["--predict, whole process"].append(whole / flags.images)
                first.append(taken)
        common.report("picture", times)
        common.report("first row", {"a fresh process": first})


if __name__ == "__main__":
    main()
