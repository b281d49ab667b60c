"""Decoded images in a file that all processes share: decoded once, and no memory that grows with their number."""

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine import runtime
from synthesis import read_image

LIMIT = 2**32  # bytes of a file; images that it has no room for are decoded whenever they are drawn
CHUNK = 256  # images that are decoded ahead of the one being written


class DecodedImages(Sequence):
    """Images of one size, uint8 (H, W, 3), BGR, mapped from a file.

    The file is `folder`/<title>_<height>x<width>_<digest>.npy, made anew where size, files or their times have changed.

    Args:
        title: what they are, for the file's name and the progress bar.
        files: the images' files. size: (height, width).

    Raises:
        UserError: a file that cannot be decoded. OSError: no room.
    """

    def __init__(self, folder: Path, title: str, files: Sequence[Path], size: tuple[int, int]):
        self.files, self.size = list(files), tuple(size)
        self.shape = (min(len(files), LIMIT // (3 * size[0] * size[1])), *size, 3)
        stem = f"{title.replace(' ', '_')}_{size[0]}x{size[1]}"
        self.path = folder / f"{stem}_{runtime.files_digest(self.files)}.npy"
        self._mapped: np.ndarray | None = None
        if not self._is_whole():
            self._write(title)
            for path in folder.glob(f"{stem}_*.npy"):
                if path != self.path:
                    with suppress(OSError):  # Windows keeps what another run has open
                        path.unlink()

    def _is_whole(self) -> bool:
        """Whether the file is there, and not cut short by a machine that went down."""
        return self.path.is_file() and self.path.stat().st_size == len(self._header()) + math.prod(self.shape)

    def _header(self) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def _write(self, title: str) -> None:
        """Decode and write in order. Not through the map: a full disk would end the process there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.part")  # runs started side by side may both be writing
        try:
            with (
                runtime.naming(self.path),
                beside.open("wb") as stream,
                ThreadPoolExecutor(runtime.core_count()) as pool,
                tqdm(total=self.shape[0], desc=f"decoding {title}", unit="image", leave=None) as bar,
            ):
                stream.write(self._header())
                for start in range(0, self.shape[0], CHUNK):
                    chunk = self.files[start : min(start + CHUNK, self.shape[0])]
                    for image in pool.map(lambda file: read_image(file, self.size), chunk):
                        stream.write(image)
                        bar.update()
            with suppress(PermissionError) if self._is_whole() else nullcontext():  # Windows: another run has it open
                os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if self._mapped is None and index < self.shape[0]:
            with suppress(FileNotFoundError):  # deleted meanwhile
                self._mapped = np.asarray(np.load(self.path, mmap_mode="r"))
        if self._mapped is None or index >= self.shape[0]:
            return read_image(self.files[index], self.size)
        return self._mapped[index]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": None}  # a worker process maps the file itself
