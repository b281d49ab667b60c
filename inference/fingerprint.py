"""Content of checkpoints: the fingerprint that results name a model by, the checksum, and the kinds of values."""

import hashlib
import warnings
import zipfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.device import core_count

CHECKSUM = "sha256 of tensors"  # name of the method, stored before the checksum
LARGE = 2**16  # bytes; handing a smaller tensor to a thread takes longer than hashing it
MAX_BITS = 256  # of an integer; the states of random generators have 128


def load_plain(path: Path, mmap: bool) -> Any:
    """The content of a file of torch.save: tensors, on the CPU, and plain values.

    Raises:
        ValueError: with compressed entries, which torch does not write, a small file could fill the memory. Others as
            torch.load.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError(f"{path} is compressed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that are refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def fingerprint(weights: dict[str, Tensor]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights. It does not depend on the file that holds them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(_bytes(weights[name]))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> memoryview:
    dense = tensor.detach().cpu().contiguous()  # a tensor of one value counts as contiguous, whatever its stride is
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().data


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(_bytes(tensor)).digest()


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of the content of a checkpoint, except its entry `checksum`; with the name of the method before it."""
    digest = hashlib.sha256()
    tensors: list[Tensor] = []

    def feed(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {len(tensors)}".encode())
            tensors.append(value)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(repr(key).encode())
                feed(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                feed(one)
        else:
            digest.update(repr(value).encode())

    feed({key: value for key, value in content.items() if key != "checksum"})
    with ThreadPoolExecutor(core_count()) as pool:  # hashing releases the GIL
        in_threads = {id(one): pool.submit(_digest, one) for one in tensors if one.nbytes >= LARGE}
        for one in tensors:
            digest.update(in_threads[id(one)].result() if id(one) in in_threads else _digest(one))
    return f"{CHECKSUM} {digest.hexdigest()}"


def is_damaged(content: dict[str, Any]) -> bool:
    """Whether the content of a checkpoint differs from its checksum. False without a checksum, or with an older one."""
    stored = str(content.get("checksum"))
    return stored.startswith(f"{CHECKSUM} ") and checksum(content) != stored


def has_plain_values(content: dict[str, Any], tensors_in: Collection[str]) -> bool:
    """Whether all values are of kinds that checkpoints need, and no tensor is larger than what is stored of it.

    tensors_in: names of the entries that may hold tensors.
    """

    def is_plain(value: Any, may_hold: bool) -> bool:
        if isinstance(value, Tensor):
            is_dense = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
            return may_hold and is_dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        if isinstance(value, dict):
            return all(is_plain(key, False) and is_plain(one, may_hold) for key, one in value.items())
        if isinstance(value, (list, tuple)):
            return all(is_plain(one, may_hold) for one in value)
        if isinstance(value, int):
            return value.bit_length() <= MAX_BITS
        return value is None or isinstance(value, (str, float))

    try:
        return all(is_plain(name, False) and is_plain(one, name in tensors_in) for name, one in content.items())
    except RecursionError:  # nested without end
        return False
