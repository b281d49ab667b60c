"""data/file_end.py: a file that is still being written is not complete."""

import cv2
import numpy as np
import pytest
from PIL import Image

from data.file_end import has_end

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def jpeg_with_thumbnail(path):
    small = cv2.imencode(".jpg", IMAGE[:8, :8])[1].tobytes()  # has an end of its own
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    whole = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    path.write_bytes(whole[:2] + segment + whole[2:])


MAKERS = {
    "a.png": lambda path: cv2.imwrite(str(path), IMAGE),
    "interlaced.png": lambda path: Image.fromarray(IMAGE[..., 0]).save(path, optimize=True),
    "a.jpg": lambda path: cv2.imwrite(str(path), IMAGE),
    "progressive.jpeg": lambda path: Image.fromarray(IMAGE).save(path, progressive=True, subsampling=0),
    "restarts.jpg": lambda path: cv2.imwrite(str(path), IMAGE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]),
    "thumbnail.JPG": jpeg_with_thumbnail,
    "named wrongly.bmp": lambda path: path.write_bytes(cv2.imencode(".png", IMAGE)[1].tobytes()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_png_and_jpeg_are_complete_at_their_end(tmp_path, name):
    path = tmp_path / name
    MAKERS[name](path)
    whole = path.read_bytes()
    assert has_end(path) is True
    path.write_bytes(whole + b"more")
    assert has_end(path) is True
    for length in sorted({*range(8, len(whole) - 8, len(whole) // 40), len(whole) - 9, len(whole) - 13}):
        path.write_bytes(whole[:length])
        assert has_end(path) is False, length
        path.write_bytes(whole[:length] + bytes(len(whole) - length))  # the size is set first
        assert has_end(path) is False, length


def test_other_formats_have_no_end_to_look_at(tmp_path):
    for name, content in (("a.bmp", b"BM"), ("a.tif", b"II*"), ("a.png", b"no image"), ("a.bmp", b"")):
        (tmp_path / name).write_bytes(content)
        assert has_end(tmp_path / name) is None
    for content in (b"", bytes(100)):
        (tmp_path / "b.png").write_bytes(content)
        assert has_end(tmp_path / "b.png") is False
    with pytest.raises(FileNotFoundError):
        has_end(tmp_path / "missing.png")
