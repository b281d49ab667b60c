"""Read JSON files, also malformed ones: any of them gives a value or a ValueError."""

import errno
import json
import math
from pathlib import Path
from typing import Any

PIPE = "is a pipe, which may never end"
LARGEST = 2**63  # whole numbers below it; a larger one overflows where it becomes a float or an index


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8; OSError where it cannot be read, ValueError where it is malformed."""
    if path.is_fifo():
        raise OSError(errno.EINVAL, PIPE, str(path))
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError where it is malformed, nested too deeply or has a number out of range."""
    try:
        return json.loads(text, parse_int=_whole, parse_float=_number, parse_constant=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) >= LARGEST:
        raise ValueError(f"a whole number with {len(text)} digits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is out of range")
    return value
