"""Optimize the networks for speed: batch norm folded into convolutions, precision, memory format, compilation."""

import copy
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from model import DRAEM
from runtime.device import memory_format
from runtime.errors import UserError

# Inference is compiled if it will take longer than this, in seconds. Measured on CPUs: compilation takes 20 to 30
# seconds and saves 28 % of the time with AMX, 7 % without. Compiled training is slower on a CPU.
PAYS_FROM = 100 if torch.cpu.get_capabilities().get("amx_bf16") else 300
FEWEST_PASSES = 20  # with fewer passes, their duration is not measured and the model is not compiled
# Training on CUDA is compiled from this number of steps on: an estimate, as compilation takes one or two minutes.
PAYS_FROM_STEP = 5000


def _folded(model: DRAEM) -> DRAEM:
    """A copy for inference, with each batch norm folded into the convolution before it."""
    model = copy.deepcopy(model).eval()
    for layers in model.modules():
        if isinstance(layers, nn.Sequential):
            for i, (convolution, norm) in enumerate(pairwise(list(layers))):
                if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
                    mean, variance = norm.running_mean, norm.running_var
                    assert mean is not None and variance is not None  # None only without track_running_stats
                    convolution.weight, convolution.bias = fuse_conv_bn_weights(
                        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
                    )
                    layers[i + 1] = nn.Identity()
    return model


def optimized(model: DRAEM, device: torch.device, precision: torch.dtype) -> DRAEM:
    """A copy of the model for inference on `device` in `precision`, with the logits computed in float32."""
    model, layout = _folded(model), memory_format(device, precision)
    model.to(device, precision, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    # Logits in bfloat16 would be rounded, and different scores would become equal.
    final = model.discriminative.decoder_segment.fin_out.float()
    final.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


def for_training(
    model: nn.Module, setting: str, device: torch.device, steps: int
) -> Callable[[Tensor], Sequence[Tensor]]:
    """The model for training, compiled if that pays; on CUDA with CUDA graphs.

    Args:
        setting: train.compile: 'on', 'off', or 'auto': compiled on CUDA from PAYS_FROM_STEP steps on.
        steps: number of training steps.
    """
    if setting == "off" or (setting == "auto" and (device.type != "cuda" or steps < PAYS_FROM_STEP)):
        return model
    return Compiled(model, setting, mode="reduce-overhead" if device.type == "cuda" else None)


def for_inference(
    model: nn.Module, setting: str, blank: Callable[[], Tensor], passes: int
) -> Callable[[Tensor], Sequence[Tensor]]:
    """The model for inference, compiled if that pays.

    Args:
        setting: train.compile: 'on', 'off', or 'auto': compiled if all passes will take longer than PAYS_FROM.
        blank: makes a batch (N, 3, H, W) of the shape, type and device in use; 'auto' measures the model on it.
        passes: number of batches.
    """
    if setting == "off" or (setting == "auto" and passes < FEWEST_PASSES):
        return model
    if setting == "auto" and _seconds_of_pass(model, blank()) * passes <= PAYS_FROM:
        return model
    return Compiled(model, setting, freezing=True)


def _seconds_of_pass(model: nn.Module, batch: Tensor) -> float:
    """Duration of one forward pass in seconds."""
    for _ in range(2):  # the first pass also allocates memory and selects algorithms
        start = time.perf_counter()
        with torch.inference_mode():
            model(batch)[1].sum().item()  # waits for the device
    return time.perf_counter() - start


class Compiled:
    """A model that is compiled at its first call, for the shape of that batch.

    Batches of another shape, such as a smaller last batch, run uncompiled. If compilation fails, the model runs
    uncompiled with setting 'auto'; with 'on' it raises UserError.

    Args:
        mode: see torch.compile. freezing: make the weights constants; for inference only.
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
        """Compile and run the model. Only errors of this first call can come from the compiler."""
        import torch._dynamo  # these imports take a second, and only compilation needs them
        import torch._functorch.config
        import torch._inductor.config

        print("compiling the networks: 20 seconds to 2 minutes")
        try:
            # `freezing` is read while tracing, so it cannot be an option of torch.compile. The backward pass is also
            # compiled now, so that its errors are caught here.
            with (
                torch._inductor.config.patch(freezing=self._freezing),
                torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            ):
                # isolate_recompiles: models of the same class would otherwise count together towards a limit.
                options: dict[str, Any] = {"dynamic": False, "mode": self._mode, "isolate_recompiles": True}
                compiled = torch.compile(self._model, **options)
                result = compiled(x)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())[:160]
            if self._setting == "on":
                raise UserError(
                    "train.compile = on", f"torch.compile failed ({reason})", "set it to auto or off"
                ) from error
            print(f"torch.compile failed ({reason}); continuing without compilation")
            compiled, result = self._model, self._model(x)
        self._compiled = compiled
        return result
