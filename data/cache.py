"""Decoded pictures, kept in files that all processes map."""

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
from runtime.device import core_count
from runtime.files import atomic_write, remove_least_recently_used, remove_leftovers, shared_lock

LIMIT = 2**32  # bytes of a file; images that it has no room for are decoded whenever they are drawn
TOTAL = 2**34  # bytes of all files in a folder that no process has open
AHEAD = 2**28  # bytes of images that are decoded ahead of the one being written


def cache_folder(checkpoint_path: str) -> Path:
    """Where decoded pictures are kept, for all categories and runs."""
    return Path(checkpoint_path) / ".decoded"


def half_of_disk(folder: Path) -> int:
    """Bytes that a file of pictures which every epoch needs may have there: half of what is free, LIMIT at least."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return max(LIMIT, shutil.disk_usage(there).free // 2)


class ArrayCache(Sequence):
    """Arrays of one shape, uint8, made once and then mapped from a file that all processes share.

    Subclasses have `make(index)`. The file is `folder`/<name>.npy; several names lie side by side. All
    files together have at most TOTAL bytes: the longest unused go, but for those that a process has open. They can be
    deleted at any time. Arrays that a file has no room for are made whenever they are asked for.

    Args:
        name: tells all that the arrays depend on. title: what they are, for the progress bar.
        count: how many. shape: of each. limit: bytes of the file; None: LIMIT.

    Raises:
        OSError: no room.
    """

    def __init__(
        self, folder: Path, name: str, title: str, count: int, shape: tuple[int, ...], limit: int | None = None
    ):
        self.path, self.count = folder / f"{name}.npy", count
        self.shape = (min(count, (limit or LIMIT) // math.prod(shape)), *shape)
        self._mapped: np.ndarray | None = None
        self._mark: shared_lock | None = None
        remove_leftovers(folder)
        if not self._is_whole():
            self._write(title)
        with suppress(FileNotFoundError):  # deleted meanwhile
            self._mark = shared_lock(self.path)
            os.utime(self.path)
        remove_least_recently_used(folder.glob("*.npy"), TOTAL)

    @abstractmethod
    def make(self, index: int) -> np.ndarray:
        """One array, as it goes into the file."""

    def _is_whole(self) -> bool:
        """Whether the file is there, and not cut short by a machine that went down. It may hold more than there would
        be room for now, as it takes room itself."""
        try:
            kept = np.load(self.path, mmap_mode="r").shape
        except (OSError, ValueError):
            return False
        if kept[1:] != self.shape[1:] or not self.shape[0] <= kept[0] <= self.count:
            return False
        self.shape = kept
        return True

    def _header(self) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def _write(self, title: str) -> None:
        """Make and write in order. Not through the map: a full disk would end the process there."""
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
                        stream.write(array)
                        bar.update()
        except PermissionError:  # Windows: another run has made it meanwhile, and has it open
            if not self._is_whole():
                raise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if self._mapped is None and index < self.shape[0]:
            with suppress(FileNotFoundError):  # deleted meanwhile
                self._mapped = np.asarray(np.load(self.path, mmap_mode="r"))
        if self._mapped is None or index >= len(self._mapped):
            return self.make(index)
        return self._mapped[index]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": None, "_mark": None}  # a worker process maps the file itself


class DecodedImages(ArrayCache):
    """Images of one size, uint8 (H, W, 3), BGR, decoded once. The file is named by their content, size and order.

    Args:
        title: what they are. files: the images' files. size: (height, width). white_level: see `image_io.read_image`.
        limit: see `ArrayCache`.

    Raises:
        UserError: a file that cannot be decoded. OSError: no room.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        files: Sequence[Path],
        size: tuple[int, int],
        white_level: float | None = None,
        limit: int | None = None,
    ):
        self.files, self.size, self.white_level = list(files), tuple(size), white_level
        content = provenance.digest([provenance.VERSION, white_level, *provenance.file_digests(self.files)])
        name = f"{title.replace(' ', '_')}_{size[0]}x{size[1]}_{content}"
        super().__init__(folder, name, title, len(self.files), (*self.size, 3), limit)

    def make(self, index: int) -> np.ndarray:
        """The image of a file."""
        return read_image(self.files[index], self.size, self.white_level)


class Subset(Sequence):
    """Some of a row of images, by their places in it."""

    def __init__(self, images: Sequence[np.ndarray], places: Sequence[int]):
        self.images, self.places = images, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[self.places[index]]
