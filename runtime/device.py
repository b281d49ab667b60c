"""The processor: set-up of the process, device, precision, memory format, threads and loader processes."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch

from runtime.errors import FIX_STORAGE, UserError


class Compute(NamedTuple):
    """Where the networks run, and in which precision."""

    device: torch.device
    precision: torch.dtype


def setup() -> None:
    """Set the process up: the C library's allocator, OpenCV, NumPy. Programs call it, and loader processes too."""
    # One thread a process: the processes share out the work, and OpenCV's pool of threads hangs in one that was forked.
    cv2.setNumThreads(1)
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # built in, but off
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a broken image is told by its name, once
    # glibc gives large arrays back to the system at once, and clears each new one page by page: as slow as filling it.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap as well
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap keeps them
    restore_numpy_table()


def restore_numpy_table() -> None:
    """Give NumPy back the table of types that imgaug 0.4.0 reads when it is imported; NumPy 2 has dropped it."""
    if not hasattr(np, "sctypes"):
        np.sctypes = {
            "int": [np.int8, np.int16, np.int32, np.int64],
            "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
            "float": [np.float16, np.float32, np.float64],
            "complex": [np.complex64, np.complex128],
            "others": [bool, object, bytes, str, np.void],
        }


def select_device(setting: str) -> torch.device:
    """`auto`: the first of cuda, mps, cpu that is there. UserError where the one asked for is not. Sets cuDNN up."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        setting = next(name for name, there in available.items() if there)
    device = torch.device(setting)
    if not available[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise UserError(f"train.device = {setting}", "not available here", f"use one of: auto, {there}")
    torch.backends.cudnn.benchmark = True  # batches have one shape: cuDNN tries which algorithm is fastest for it
    return device


def select_precision(setting: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware is fast at it (CUDA from Ampere on, CPUs with AMX or AVX512-BF16).

    float32 means all of its digits: it turns cuDNN's TF32 off, which is on by default and keeps 10 bits of 23.
    """
    if setting == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        elif device.type == "cpu":
            capabilities = torch.cpu.get_capabilities()
            fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
        else:
            fast = False
        setting = "bf16" if fast else "fp32"
    torch.backends.cudnn.allow_tf32 = setting != "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[setting]


def memory_format(device: torch.device, precision: torch.dtype) -> torch.memory_format:
    """Layout that convolutions are fastest in: measured on CPUs in both precisions, with and without bfloat16.

    On CUDA in bfloat16, whose tensor cores want it; float32 there was not measured.
    """
    is_last = device.type == "cpu" or (device.type == "cuda" and precision == torch.bfloat16)
    return torch.channels_last if is_last else torch.contiguous_format


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Runs the networks in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def core_count() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(setting: int | str, device: torch.device, batches: int | None = None) -> int:
    """Loader processes: the setting; for `auto` the cores (at most 8), half of them where they run the networks too.

    Where the networks run on the CPU, few `batches` are read without any: starting processes takes longer.
    """
    if device.type == "cpu" and batches is not None and batches <= 16:
        return 0
    if setting != "auto":
        return int(setting)
    cores = core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that of a launcher of several processes
    return min(8, cores if device.type != "cpu" else cores // 2)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise the mistakes that loader processes meet as if they had been met here.

    Torch raises what ended a loader process with its whole traceback as text: as the same type where that takes one
    argument, otherwise as a RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = str(error)
        if caught := re.match(r"Caught (\w+) in DataLoader worker", text):
            name = caught[1]
            text = text.rpartition(f"{name}: ")[2].strip()
            if name in {one.__name__ for one in (UserError, *UserError.__subclasses__())}:
                raise UserError.from_text(text) from error
            if isinstance(error, OSError):
                raise UserError("loader process", text, FIX_STORAGE) from error
        if not text.startswith("DataLoader worker"):
            raise
        raise UserError(
            "data.num_workers", "a loader process was killed, often for lack of memory", "lower it, to 0 if need be"
        ) from error


class Together(Protocol):
    """Processes that share pictures out: `training.distributed.ProcessGroup`."""

    rank: int
    count: int

    def barrier(self) -> None:
        """Wait for all."""

    def send(self, content: object) -> None:
        """To the first."""

    def receive(self, rank: int) -> Any:
        """From another."""

    def gather(self, content: Any) -> list[Any]:
        """What all have, by rank, for all."""
