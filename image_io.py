"""Picture and mask files <-> arrays: read, resize, rotate, write, keep decoded."""

import io
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

import provenance
import runtime
from errors import UserError

LIMIT = 2**32  # bytes of a file; images that it has no room for are decoded whenever they are drawn
TOTAL = 2**34  # bytes of all files in a folder
ORIENTATION = 0x0112  # EXIF's tag
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


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as `read_image` gives it; where it can be, from the file's head alone."""
    try:
        with Image.open(path) as head:
            width, height = head.size
            is_turned = head.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if is_turned else (height, width)
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # one that only OpenCV knows, or broken
        return read_image(path).shape[:2]


def kept_folder(checkpoint_path: str) -> Path:
    """Where decoded pictures are kept, for all categories and runs."""
    return Path(checkpoint_path) / ".decoded"


class KeptArrays(Sequence):
    """Arrays of one shape, uint8, made once and then mapped from a file that all processes share.

    Subclasses have `make(index)`. The file is `folder`/<name>.npy; several names lie side by side. All
    files together have at most TOTAL bytes: the longest unused go, but for those that a process has open. They can be
    deleted at any time. Arrays that a file has no room for are made whenever they are asked for.

    Args:
        name: tells all that the arrays depend on. title: what they are, for the progress bar.
        count: how many. shape: of each.

    Raises:
        OSError: no room.
    """

    def __init__(self, folder: Path, name: str, title: str, count: int, shape: tuple[int, ...]):
        self.path, self.count = folder / f"{name}.npy", count
        self.shape = (min(count, LIMIT // math.prod(shape)), *shape)
        self._mapped: np.ndarray | None = None
        self._mark: runtime.holding | None = None
        runtime.remove_leftovers(folder)
        if not self._is_whole():
            self._write(title)
        with suppress(FileNotFoundError):  # deleted meanwhile
            self._mark = runtime.holding(self.path)
            os.utime(self.path)
        runtime.remove_least_recently_used(folder.glob("*.npy"), TOTAL)

    @abstractmethod
    def make(self, index: int) -> np.ndarray:
        """One array, as it goes into the file."""

    def _is_whole(self) -> bool:
        """Whether the file is there, and not cut short by a machine that went down."""
        return self.path.is_file() and self.path.stat().st_size == len(self._header()) + math.prod(self.shape)

    def _header(self) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    def _write(self, title: str) -> None:
        """Make and write in order. Not through the map: a full disk would end the process there."""
        try:
            with (
                runtime.replacing(self.path) as beside,
                beside.open("wb") as stream,
                ThreadPoolExecutor(runtime.core_count()) as pool,
                tqdm(total=self.shape[0], desc=f"decoding {title}", unit="image", leave=None) as bar,
            ):
                stream.write(self._header())
                for start in range(0, self.shape[0], CHUNK):
                    for array in pool.map(self.make, range(start, min(start + CHUNK, self.shape[0]))):
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
        if self._mapped is None or index >= self.shape[0]:
            return self.make(index)
        return self._mapped[index]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": None, "_mark": None}  # a worker process maps the file itself


class DecodedImages(KeptArrays):
    """Images of one size, uint8 (H, W, 3), BGR, decoded once. The file is named by their content, size and order.

    Args:
        title: what they are. files: the images' files. size: (height, width).

    Raises:
        UserError: a file that cannot be decoded. OSError: no room.
    """

    def __init__(self, folder: Path, title: str, files: Sequence[Path], size: tuple[int, int]):
        self.files, self.size = list(files), tuple(size)
        content = provenance.digest([provenance.VERSION, *provenance.file_digests(self.files)])
        name = f"{title.replace(' ', '_')}_{size[0]}x{size[1]}_{content}"
        super().__init__(folder, name, title, len(self.files), (*self.size, 3))

    def make(self, index: int) -> np.ndarray:
        """The image of a file."""
        return read_image(self.files[index], self.size)


class Subset(Sequence):
    """Some of a row of images, by their places in it."""

    def __init__(self, images: Sequence[np.ndarray], places: Sequence[int]):
        self.images, self.places = images, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[self.places[index]]
