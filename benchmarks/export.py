"""Exported files: how long an image takes in each form, and what 8 bits change on test images."""

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from config_file import load_config
from data.mvtec import list_test
from data_loader import DRAEMTestDataset
from engine import export
from evaluation.image_metrics import image_metrics
from evaluation.metrics import PixelMetrics
from inference.detector import Detector
from inference.exported import Graph, Run, compiled, openvino_model, own_signal_stack, write_onnx
from inference.quantization import Samples, milliseconds, quality_of, quantized, torch_run
from model import DRAEM
from runtime.cli import add_config_flags

WAYS = (
    "OpenVINO, float32",
    "--export openvino-int8",
    "NNCF, accuracy control",
    "ONNX Runtime, float32",
    "ONNX Runtime, 8 bits",
)
CHANNELS_OF = {16: 8, 32: 16, 64: 32, 128: 64}  # base_width -> base_channels


class _WithoutChecks(torch.nn.Module):
    """The networks without their checks of sizes, which PyTorch's tracer cannot follow."""

    def __init__(self, model: DRAEM):
        super().__init__()
        self.reconstructive, self.discriminative = model.reconstructive, model.discriminative

    def forward(self, x: Tensor) -> Tensor:
        reconstruction = self.reconstructive.decoder(self.reconstructive.encoder(x))
        segments = self.discriminative.encoder_segment(torch.cat((reconstruction, x), dim=1))
        return self.discriminative.decoder_segment(*segments)


def _torch_in_8_bits(model: DRAEM, image: np.ndarray) -> Callable[[], object]:
    """A forward pass in the 8 bits of PyTorch itself, by its quantizer for x86."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    batch = (torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of it about itself
        observed = quantize_fx.prepare_fx(_WithoutChecks(model).eval(), get_default_qconfig_mapping("x86"), (batch,))
        observed(batch)
        network = quantize_fx.convert_fx(observed)
    return lambda: network(batch)


def bench_speed() -> None:
    """Time single images in each form, in turn, with networks that are not trained, which changes no time."""
    flags = common.arguments(runs=7, width=32, size=128, threads=2)
    torch.set_num_threads(flags.threads)
    common.header(f"one image, base_width {flags.width}, {flags.size} x {flags.size}")
    torch.manual_seed(0)
    model = DRAEM(flags.width, CHANNELS_OF[flags.width]).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, flags.size, flags.size, 3), dtype=np.uint8)
    exact, size = openvino_model(Graph(model).eval()), (flags.size, flags.size)
    in_8_bits = quantized(exact, [image], [])
    forms = {
        f"{name}, the rest in {precision}": compiled(one, size, precision, flags.threads)
        for name, one in (("openvino", exact), ("openvino-int8", in_8_bits))
        for precision in ("f32", "bf16")
    }
    works: dict[str, Callable[[], object]] = {name: lambda run=run: run(image) for name, run in forms.items()}  # type: ignore[misc]
    for precision in (torch.float32, torch.bfloat16):
        run_torch = torch_run(model, torch.device("cpu"), precision)
        works[f"torch {precision}"] = lambda run=run_torch: run(image)  # type: ignore[misc]
    works["torch, 8 bits"] = _torch_in_8_bits(model, image)
    with torch.inference_mode():
        common.compare("forms", works, runs=flags.runs)


def bench_quality() -> None:
    """Image AUROC and pixel AP on the test images, of the networks and of the files that --export has written."""
    flags = common.parser()
    add_config_flags(flags)
    arguments = flags.parse_args()
    for engine in ("torch", "openvino", "openvino-int8"):
        sets = [*(arguments.set), f"inference.engine={engine}", "train.precision=fp32", "metrics.threshold=false"]
        detector = Detector.for_new_images(load_config(arguments.config, sets))
        data = detector.config.data
        samples = list_test(Path(data.data_path) / data.category)
        truth = DRAEMTestDataset(samples, data.img_size, data.known_white_level)
        pixels, scores = PixelMetrics(), []
        for place, sample in enumerate(samples):
            found = detector.run([detector.read(sample.path)])[0]
            scores.append(found.score)
            mask = truth[place]["mask"]
            assert isinstance(mask, torch.Tensor)
            pixels.update(found.output.anomaly_map, mask[0].numpy())
        labels = np.array([sample.has_anomaly for sample in samples])
        auroc, pixel_ap = image_metrics(labels, np.array(scores))["image_auroc"], pixels.compute()["pixel_ap"]
        print(f"{data.category}, {engine}: image AUROC {auroc:.4f}, pixel AP {pixel_ap:.4f}")


def _accuracy_control(model: Any, samples: Samples, bound: float) -> Any:
    """NNCF's own search for what must stay in float so that pixel AP keeps the bound; it knows one figure."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level("ERROR")

    def validate(network: Any, _: object) -> tuple[float, list[list[np.ndarray]]]:
        outputs: list[list[np.ndarray]] = []  # what convolutions are ranked by: pixel AP of one image says little

        def run(images: np.ndarray) -> list[np.ndarray]:
            outputs.append([np.array(one) for one in network(images).values()])
            return outputs[-1]

        return quality_of(run, samples).pixel_ap, outputs

    with own_signal_stack():
        return nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(samples.calibration),
            nncf.Dataset(samples.held_out),
            validate,
            max_drop=bound,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples.calibration),
            ignored_scope=nncf.IgnoredScope(types=["AvgPool"]),
            advanced_quantization_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX, disable_bias_correction=True
            ),
        )


class _Reader:
    """Calibration samples as ONNX Runtime's quantizer reads them."""

    def __init__(self, samples: Samples):
        self._left = iter(samples.calibration)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"image": image}


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})


def bench_ways() -> None:
    """Quantizers beside that of --export, on a trained model: their loss on its synthetic samples, and times."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    flags = common.parser()
    flags.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    flags.add_argument("--only", nargs="+", choices=WAYS, metavar="WAY", help="default: all")
    add_config_flags(flags)
    arguments = flags.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, arguments.set)
    detector = Detector.for_new_images(config, export.AS_THE_FILE | {"metrics.threshold": False})
    samples, size = export.calibration_samples(detector), detector.config.data.input_size
    graph = Graph(detector.ckpt.model).eval()
    model, bound = openvino_model(graph), detector.config.export.max_loss_pixel_ap
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_onnx(graph, folder / "float.onnx", {})

        def in_onnx() -> Run:
            quantize_static(
                folder / "float.onnx",
                folder / "int8.onnx",
                _Reader(samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=["Conv"],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
            return _onnxruntime(folder / "int8.onnx")

        makers: tuple[Callable[[], Run], ...] = (
            lambda: compiled(model, size, threads=arguments.threads),
            lambda: compiled(
                export.quantized_in_bounds(detector, graph, model, samples)[0], size, threads=arguments.threads
            ),
            lambda: compiled(_accuracy_control(model.clone(), samples, bound), size, threads=arguments.threads),
            lambda: _onnxruntime(folder / "float.onnx"),
            in_onnx,
        )
        ways = dict(zip(WAYS, makers, strict=True))
        runs: dict[str, Run] = {}
        for way in arguments.only or ways:
            start = time.process_time()
            runs[way] = ways[way]()
            seconds = time.process_time() - start
            quality = quality_of(runs[way], samples)
            print(f"{way}: pixel AP {quality.pixel_ap:.4f}, image AUROC {quality.image_auroc:.4f}, {seconds:.0f} s")
        times = milliseconds(list(runs.values()), samples.held_out[:20])
        print("; ".join(f"{way} {one:.1f} ms" for way, one in zip(runs, times, strict=True)))


if __name__ == "__main__":
    common.run({"speed": bench_speed, "quality": bench_quality, "ways": bench_ways})
