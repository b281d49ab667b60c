"""Picture and mask files <-> arrays: read, resize, rotate, write, keep decoded."""

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import runtime
from errors import UserError

LIMIT = 2**32  # bytes of a file; images that it has no room for are decoded whenever they are drawn
CHUNK = 256  # images that are decoded ahead of the one being written
# Where there is a choice one filter: trying them all on every line takes twice as long and saves 3 %.
PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []


def read_image(path: Path, size: tuple[int, int] | None = None, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Image file -> uint8 (H, W, 3) BGR, resized (linear) to `size` (height, width) if given.

    Gray images get three equal channels, alpha is dropped, 16 bits become 8. Raises UserError where it does not decode.
    """
    try:
        data = np.fromfile(path, np.uint8)  # not imread: that fails on non-ASCII paths on Windows
        image = cv2.imdecode(data, flags) if data.size else None
    except (OSError, cv2.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove the file") from error
    if image is None:
        raise UserError(f"{path}: cannot be decoded as an image; mend or remove the file")
    return image if size is None else resize(image, size)


def read_all(images: Sequence[Path | np.ndarray], size: tuple[int, int]) -> Sequence[np.ndarray]:
    """Images, uint8 (H, W, 3), of `size` (height, width): files read, decoded images as they are."""
    return images if isinstance(images[0], np.ndarray) else [read_image(file, size) for file in images]


def read_mask(path: Path, original_size: tuple[int, int]) -> np.ndarray:
    """Ground-truth mask, uint8 (H, W), 255 where anomalous; UserError where it is not of its picture's size."""
    mask = read_image(path, flags=cv2.IMREAD_UNCHANGED)
    mask = mask if mask.ndim == 2 else mask[..., 0]
    if mask.shape != tuple(original_size):
        found, wanted = ("{1} x {0}".format(*shape) for shape in (mask.shape, original_size))
        raise UserError(f"{path}: mask of {found} pixels, but its image has {wanted} (width x height); replace it")
    if mask.max() == 1:
        return mask.astype(np.uint8) * np.uint8(255)
    return (mask >> 8).astype(np.uint8) if mask.dtype == np.uint16 else mask


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Linear resize of (H, W) or (H, W, C) to `size` (height, width), as the original does it."""
    return image if image.shape[:2] == tuple(size) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate clockwise about the center, linear, zeros outside: what imgaug's `Affine(rotate=degrees)` gives."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), -degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 BGR picture as PNG; OSError where that fails."""
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1, *PNG_FILTER])
    if not done:
        raise OSError(f"{path}: picture could not be encoded")
    Path(path).write_bytes(data)


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
