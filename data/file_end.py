"""Whether an image file is complete, as its format tells: an image can be read while it is still being written."""

import mmap
import os
import re
from pathlib import Path

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe")
NO_SEGMENT = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length: TEM, RST0 to RST7, SOI
SOS, EOI = 0xDA, 0xD9
# The end of a JPEG scan: a marker that is neither a stuffed zero, nor a fill byte, nor a restart.
SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def has_end(path: Path) -> bool | None:
    """Whether a PNG or JPEG file has its end (IEND, EOI); None for other formats, whose size may be set beforehand.

    Bytes that follow the end do not matter. OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        is_named_so = path.suffix.lower() in SUFFIXES
        if not os.fstat(file.fileno()).st_size:
            return False if is_named_so else None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:8] == PNG:
                return _png_has_end(data)
            if data[:2] == JPEG:
                return _jpeg_has_end(data)
            return False if is_named_so and not any(data[:8]) else None  # zeros: nothing is written yet


def _png_has_end(data: mmap.mmap) -> bool:
    start = len(PNG)
    while start + 12 <= len(data):  # a chunk: length, type, content, check sum
        if data[start + 4 : start + 8] == b"IEND":
            return True
        if not data[start + 4 : start + 8].isalpha():
            return False
        start += 12 + int.from_bytes(data[start : start + 4], "big")
    return False


def _jpeg_has_end(data: mmap.mmap) -> bool:
    start = 0
    while start + 2 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker == EOI:
            return True
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        start += 2
        if marker not in NO_SEGMENT:
            start += max(int.from_bytes(data[start : start + 2], "big"), 2)
        if marker == SOS:
            found = SCAN_END.search(data, start)
            if not found:
                return False
            start = found.start()
    return False
