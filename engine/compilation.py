"""torch.compile where it pays."""

import importlib
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from errors import UserError

# Measured: on a CPU a compiled inference saves 7 % (AVX512-BF16) to 28 % (AMX) of the time and takes 20 to 30 s to
# compile, so that below five minutes of work it would rather cost. Compiled training is slower there.
PAYS_FROM = 300  # seconds of inference


def for_training(model: nn.Module, setting: str, device: torch.device) -> Callable[[Tensor], Sequence[Tensor]]:
    """The model, compiled with CUDA graphs where `setting` is on, or auto and the device CUDA."""
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return model
    return Compiled(model, setting, mode="reduce-overhead" if device.type == "cuda" else None)


class ForInference:
    """The model, compiled where `setting` is on, or auto and there is work for minutes.

    Args:
        images: how many it will be given in all.
    """

    def __init__(self, model: nn.Module, setting: str, images: int):
        self._network, self._setting, self._left, self._passes = model, setting, images, 0
        if setting == "on":
            self._compile()

    def _compile(self) -> None:
        self._network = Compiled(self._network, self._setting, freezing=True)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        self._passes += 1
        self._left -= len(x)
        if self._setting != "auto" or self._passes != 2:  # the first pass also allocates and chooses algorithms
            return self._network(x)
        start = time.perf_counter()
        result = self._network(x)
        result[1].sum().item()  # waits for the device
        if (time.perf_counter() - start) / len(x) * self._left > PAYS_FROM:
            self._compile()
        return result


class Compiled:
    """A model compiled for the shape that it is first given; other shapes, as that of a last batch, run uncompiled.

    Where the compiler fails, UserError if `setting` is on; with auto the model runs uncompiled from then on.
    `freezing`: weights become constants; for inference only.
    """

    def __init__(self, model: nn.Module, setting: str, mode: str | None = None, freezing: bool = False):
        # The compiler's modules: a second to import, which only those who compile should wait for.
        for module in ("torch._dynamo", "torch._functorch.config", "torch._inductor.config"):
            importlib.import_module(module)
        self._model, self._setting, self._mode, self._shape = model, setting, mode, None
        self._freezing = freezing
        self._compiled: Callable | None = None

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        self._shape = self._shape or x.shape
        if x.shape != self._shape:
            return self._model(x)
        try:
            # Read while tracing, so it cannot be an option of torch.compile; where the backward pass is compiled at
            # once, its failure is met here as well.
            with (
                torch._inductor.config.patch(freezing=self._freezing),
                torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            ):
                if self._compiled is None:
                    # Apart from other models of the same class, whose number would end compilation.
                    self._compiled = torch.compile(self._model, dynamic=False, mode=self._mode, isolate_recompiles=True)
                return self._compiled(x)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())[:160]
            if self._setting == "on":
                mend = "set it to auto or off"
                raise UserError(f"train.compile = on: torch.compile fails here ({reason}); {mend}") from error
            print(f"torch.compile fails here ({reason}); going on without it")
            self._compiled = self._model
            return self._model(x)
