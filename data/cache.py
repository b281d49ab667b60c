"""Cache of decoded images: files on disk that all processes map into memory."""

import io
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.image_io import read_image
from runtime import provenance
from runtime.device import core_count, map_in_threads
from runtime.errors import UserError
from runtime.files import atomic_write, remove_least_recently_used, remove_leftovers, shared_lock

LIMIT = 2**32  # bytes, maximum size of one file; images beyond it are decoded at every access
TOTAL = 2**34  # bytes, maximum size of all files in a folder, files in use by a process excepted
AHEAD = 2**28  # bytes of images that threads decode ahead of the image being written


def cache_folder(checkpoint_path: str) -> Path:
    """Folder of the cache files, shared by all categories and runs."""
    return Path(checkpoint_path) / ".decoded"


def half_of_disk(folder: Path) -> int:
    """Half of the free bytes on the disk of `folder`, at least LIMIT: size limit for images that every epoch needs."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return max(LIMIT, shutil.disk_usage(existing).free // 2)


class ArrayCache(Sequence[np.ndarray]):
    """Sequence of uint8 arrays of one shape, computed once and then mapped from a file that all processes share.

    A subclass implements `make(index)`. The file is `folder`/<name>.npy. When all files in the folder exceed TOTAL
    bytes, the least recently used ones are deleted, except those that a process has open. Users can delete the files at
    any time. Arrays beyond the size limit of the file are computed at every access.

    Args:
        name: file name, with a digest of everything that the arrays depend on.
        title: contents, in words, for the progress bar.
        count: number of arrays. shape: shape of each array.
        limit: maximum size of the file in bytes; None: LIMIT.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """

    def __init__(
        self, folder: Path, name: str, title: str, count: int, shape: tuple[int, ...], limit: int | None = None
    ):
        self.path, self._count = folder / f"{name}.npy", count
        self.shape = (min(count, (limit or LIMIT) // math.prod(shape)), *shape)
        self._mapped: np.ndarray | None = None
        self._lock: shared_lock | None = None
        remove_leftovers(folder)
        if not self._is_complete():
            self._write(title)
        with suppress(FileNotFoundError):  # another process deleted the file in the meantime
            self._lock = shared_lock(self.path)
        with suppress(OSError):  # a file of another user: it is read all the same
            os.utime(self.path)
        remove_least_recently_used(folder.glob("*.npy"), TOTAL)

    @abstractmethod
    def make(self, index: int) -> np.ndarray:
        """Compute array `index`, uint8, of the shape given to the constructor."""

    def _is_complete(self) -> bool:
        """Whether the file exists and was not truncated, for example by a power failure.

        An existing file may hold more arrays than a new one could: the file itself takes up free space, from which
        `half_of_disk` computes the limit.
        """
        try:
            shape = np.load(self.path, mmap_mode="r").shape
        except (OSError, ValueError):
            return False
        if shape[1:] != self.shape[1:] or not self.shape[0] <= shape[0] <= self._count:
            return False
        self.shape = shape
        return True

    def _header(self) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def _write(self, title: str) -> None:
        """Compute and write all arrays in order. Not through a memory map: a full disk would kill the process."""
        try:
            with (
                atomic_write(self.path) as beside,
                beside.open("wb") as stream,
                ThreadPoolExecutor(core_count()) as pool,
                tqdm(total=self.shape[0], desc=f"decoding {title}", unit="image", leave=None) as bar,
            ):
                stream.write(self._header())
                ahead = max(AHEAD // math.prod(self.shape[1:]), core_count())
                for start in range(0, self.shape[0], ahead):
                    for array in pool.map(self.make, range(start, min(start + ahead, self.shape[0]))):
                        stream.write(array.data)
                        bar.update()
        except UserError:  # name all images that fail
            map_in_threads(lambda index: self.make(index) is None, range(len(self)))
            raise
        except PermissionError:  # Windows: another run has written the file in the meantime, and has it open
            if not self._is_complete():
                raise

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if self._mapped is None and index < self.shape[0]:
            with suppress(FileNotFoundError):  # another process deleted the file in the meantime
                self._mapped = np.asarray(np.load(self.path, mmap_mode="r"))
        if self._mapped is None or index >= len(self._mapped):
            return self.make(index)
        return self._mapped[index]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": None, "_lock": None}  # a worker process maps the file itself


class DecodedImages(ArrayCache):
    """Images of one size, uint8 (H, W, 3), BGR, decoded once. The file name has a digest of content, size and order.

    Args:
        folder, limit: see `ArrayCache`.
        title: contents, in words, for the file name and the progress bar.
        files: image files. size: (height, width) to resize to. white_level: see `image_io.read_image`.

    Raises:
        UserError: an image cannot be decoded.
        OSError: the cache file cannot be written, for example because the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        files: Sequence[Path],
        size: tuple[int, int],
        white_level: float | str | None = None,
        limit: int | None = None,
    ):
        self.files, self.size, self.white_level = list(files), size, white_level
        content = provenance.digest([provenance.VERSION, white_level, *provenance.file_digests(self.files)])
        name = f"{title.replace(' ', '_')}_{size[0]}x{size[1]}_{content}"
        super().__init__(folder, name, title, len(self.files), (*self.size, 3), limit)

    def make(self, index: int) -> np.ndarray:
        """Decode image `index`: uint8 (H, W, 3), BGR."""
        return read_image(self.files[index], self.size, self.white_level)


class Subset(Sequence[np.ndarray]):
    """Those images of a sequence whose indices are given."""

    def __init__(self, images: Sequence[np.ndarray], indices: Sequence[int]):
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return self.images[self.indices[index]]
