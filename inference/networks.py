"""Networks ready to run: batch norm folded, precision and layout chosen, compiled where it pays."""

import copy
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from model import DRAEM
from runtime.device import memory_format
from runtime.errors import UserError

# Seconds of inference that compilation pays from: measured, it saves 28 % of them with AMX and 7 % without, and takes
# 20 to 30. Compiled training is slower on a CPU.
PAYS_FROM = 100 if torch.cpu.get_capabilities().get("amx_bf16") else 300
FEWEST_PASSES = 20  # so few are not worth a measurement
# Steps of training that it pays from on CUDA, where it takes one or two minutes: an estimate.
PAYS_FROM_STEP = 5000


def _folded(model: DRAEM) -> DRAEM:
    """A copy for inference: each batch norm folded into the convolution before it."""
    model = copy.deepcopy(model).eval()
    for layers in model.modules():
        if isinstance(layers, nn.Sequential):
            for i, (convolution, norm) in enumerate(pairwise(list(layers))):
                if isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return model


def optimized(model: DRAEM, device: torch.device, precision: torch.dtype) -> DRAEM:
    """A copy for inference in `precision`, but for its logits."""
    model = _folded(model).to(device, precision, memory_format=memory_format(device, precision))
    # Its logits in float32: rounded to bfloat16, different scores would become equal.
    final = model.discriminative.decoder_segment.fin_out.float()
    final.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def for_training(
    model: nn.Module, setting: str, device: torch.device, steps: int
) -> Callable[[Tensor], Sequence[Tensor]]:
    """The model, compiled where `setting` is on, or auto, the device CUDA and `steps` many; there with CUDA graphs."""
    if setting == "off" or (setting == "auto" and (device.type != "cuda" or steps < PAYS_FROM_STEP)):
        return model
    return Compiled(model, setting, mode="reduce-overhead" if device.type == "cuda" else None)


def for_inference(model: nn.Module, setting: str, batch: Tensor, passes: int) -> Callable[[Tensor], Sequence[Tensor]]:
    """The model, compiled where `setting` is on, or auto and the passes to come take minutes.

    Args:
        batch: one like those to come, (N, 3, H, W); auto measures the model on it. passes: how many are to come.
    """
    if setting == "off" or (setting == "auto" and passes < FEWEST_PASSES):
        return model
    if setting == "auto" and _seconds_of_pass(model, batch) * passes <= PAYS_FROM:
        return model
    return Compiled(model, setting, freezing=True)


def _seconds_of_pass(model: nn.Module, batch: Tensor) -> float:
    for _ in range(2):  # the first also allocates and chooses algorithms
        start = time.perf_counter()
        with torch.inference_mode():
            model(batch)[1].sum().item()  # waits for the device
    return time.perf_counter() - start


class Compiled:
    """A model compiled for the shape that it is first given; other shapes, as that of a last batch, run uncompiled.

    Where the compiler fails, UserError if `setting` is on; with auto the model runs uncompiled from then on.
    `freezing`: weights become constants; for inference only.
    """

    def __init__(self, model: nn.Module, setting: str, mode: str | None = None, freezing: bool = False):
        self._model, self._setting, self._mode, self._freezing = model, setting, mode, freezing
        self._shape: torch.Size | None = None
        self._compiled: Callable | None = None

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        self._shape = self._shape or x.shape
        if x.shape != self._shape:
            return self._model(x)
        if self._compiled is None:
            return self._first(x)
        return self._compiled(x)

    def _first(self, x: Tensor) -> Sequence[Tensor]:
        """Compile and run; errors of later runs are not the compiler's."""
        import torch._dynamo  # these take a second, which only those who compile should wait for
        import torch._functorch.config
        import torch._inductor.config

        print("compiling the networks: 20 seconds to 2 minutes")
        try:
            # Read while tracing, so it cannot be an option of torch.compile; where the backward pass is compiled at
            # once, its failure is met here as well.
            with (
                torch._inductor.config.patch(freezing=self._freezing),
                torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            ):
                # Apart from other models of the same class, whose number would end compilation.
                compiled = torch.compile(self._model, dynamic=False, mode=self._mode, isolate_recompiles=True)
                result = compiled(x)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())[:160]
            if self._setting == "on":
                raise UserError(
                    "train.compile = on", f"torch.compile fails here ({reason})", "set it to auto or off"
                ) from error
            print(f"torch.compile fails here ({reason}); going on without it")
            compiled, result = self._model, self._model(x)
        self._compiled = compiled
        return result
