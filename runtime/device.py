"""Hardware: process setup, device, precision, memory format, threads and loader processes."""

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch

from runtime.errors import FIX_STORAGE, UserError, UserErrors

MOST_LISTED = 100  # names in a message


class Compute(NamedTuple):
    """Device that the networks run on, and the data type of their computations."""

    device: torch.device
    precision: torch.dtype


def setup() -> None:
    """Configure the memory allocator and libraries. Called once in each program and in each loader process."""
    # One thread per process: loader processes already use all cores, and OpenCV's thread pool hangs in forked ones.
    cv2.setNumThreads(1)
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # OpenEXR is built in, but disabled by default
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors of decoding are reported as UserError
    # By default glibc returns the memory of large arrays to the system at once. Each new array then costs a page fault
    # per page, which takes as long as filling it.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: allocate large blocks on the heap, too
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
    # OpenVINO's converter and NNCF would report each use over the network; without this package they do not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as where it is not installed
    restore_numpy_table()
    _find_temporary_folder()


def _find_temporary_folder() -> None:
    """Use shared memory for temporary files where no other folder can be written to, as in read-only containers.

    Loader processes and the export need some small ones. TMPDIR is for processes that are started from here.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        if os.access("/dev/shm", os.W_OK):
            tempfile.tempdir = os.environ["TMPDIR"] = "/dev/shm"


def restore_numpy_table() -> None:
    """Restore `numpy.sctypes`, which imgaug 0.4.0 reads when it is imported and NumPy 2 has removed."""
    if not hasattr(np, "sctypes"):
        np.sctypes = {  # type: ignore[attr-defined]
            "int": [np.int8, np.int16, np.int32, np.int64],
            "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
            "float": [np.float16, np.float32, np.float64],
            "complex": [np.complex64, np.complex128],
            "others": [bool, object, bytes, str, np.void],
        }


def select_device(setting: str) -> torch.device:
    """Device for train.device; `auto` is the first available of cuda, mps and cpu. Also configures cuDNN.

    Raises:
        UserError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        setting = next(name for name, is_available in available.items() if is_available)
    device = torch.device(setting)
    if not available[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise UserError(f"train.device = {setting}", "not available on this machine", f"use one of: auto, {names}")
    torch.backends.cudnn.benchmark = True  # all batches have one shape: cuDNN searches the fastest algorithm for it
    return device


def select_precision(setting: str, device: torch.device) -> torch.dtype:
    """Data type for train.precision.

    `auto` is bfloat16 on hardware that is fast at it (CUDA from Ampere on, CPUs with AMX or AVX512-BF16), else float32.
    With float32, TF32 is disabled in cuDNN: it is on by default and keeps only 10 of the 23 bits of the mantissa.
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
    """Memory format in which convolutions are fastest.

    channels_last on CPUs (measured in float32 and bfloat16), and on CUDA in bfloat16, where tensor cores need it. CUDA
    in float32 was not measured and uses the contiguous format.
    """
    is_last = device.type == "cpu" or (device.type == "cuda" and precision == torch.bfloat16)
    return torch.channels_last if is_last else torch.contiguous_format


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Context manager that runs the networks in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def core_count() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(setting: int | str, device: torch.device, batches: int | None = None) -> int:
    """Number of loader processes for data.num_workers.

    `auto` is the number of CPU cores, at most 8; half of the cores if the networks run on the CPU, too.

    Args:
        batches: number of batches to load. On the CPU up to 16 are loaded without loader processes, as starting these
            takes longer. None: unknown.
    """
    if device.type == "cpu" and batches is not None and batches <= 16:
        return 0
    if setting != "auto":
        return int(setting)
    together = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    if not re.fullmatch(r"0{0,9}[1-9]\d{0,8}", together):
        raise UserError(f"LOCAL_WORLD_SIZE = {together[:40]}", "must be a number from 1", "set it as torchrun does")
    cores = core_count() // int(together)
    return min(8, cores if device.type != "cpu" else cores // 2)


def map_in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Results of a function for all items, in order.

    Raises:
        UserError: the first of those that it has raised; the second line names the others, up to MOST_LISTED.
    """

    def attempt(item: Any) -> Any:
        try:
            return function(item)
        except UserError as error:
            return error

    with ThreadPoolExecutor(core_count()) as pool:
        results = list(pool.map(attempt, items))
    if errors := [result for result in results if isinstance(result, UserError)]:
        names = [error.subject for error in errors[1 : MOST_LISTED + 1]]
        more = "" if len(errors) - 1 <= MOST_LISTED else ", ..."
        others = [UserError(f"{len(errors) - 1} more fail", f"{', '.join(names)}{more}", "")] if names else []
        raise UserErrors([errors[0], *others])
    return results


def is_device_fault(error: BaseException) -> bool:
    """Whether an error is of the GPU itself, after which nothing can be computed in this process any more."""
    return "CUDA error" in str(error) or "device-side assert" in str(error)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn errors of loader processes into the UserError that was raised there.

    PyTorch re-raises an error of a loader process with the whole traceback as its text: with the same type if its
    constructor takes a single argument, else as a RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = str(error)
        if caught := re.match(r"Caught (\w+) in DataLoader worker", text):
            name = caught[1]
            text = text.rpartition(f"{name}: ")[2].strip()
            kinds: list[type[UserError]] = [UserError, *UserError.__subclasses__()]
            if name in {kind.__name__ for kind in kinds}:
                raise UserError.from_text(text) from error
            if isinstance(error, OSError):
                raise UserError("loader process", text, FIX_STORAGE) from error
            if "shared memory" in text:
                raise UserError(
                    "data.num_workers",
                    "too little shared memory for loader processes",
                    "set it to a smaller number, or to 0, or give the container more (docker run --shm-size=2g)",
                ) from error
        if not text.startswith("DataLoader worker"):
            raise
        raise UserError(
            "data.num_workers",
            "a loader process was killed, often because memory ran out",
            "set it to a smaller number, or to 0",
        ) from error


class Together(Protocol):
    """Interface of `training.distributed.ProcessGroup`, for modules that must not import it.

    Attributes:
        rank: of this process, from 0. count: number of processes.
    """

    rank: int
    count: int

    def barrier(self) -> None:
        """Wait until all processes have called this."""

    def send(self, content: object) -> None:
        """Send an object to rank 0."""

    def receive(self, rank: int) -> Any:
        """Receive an object that another rank has sent to this one, rank 0."""

    def gather(self, content: Any) -> list[Any]:
        """The objects of all ranks, in order of rank; every rank gets the list."""
