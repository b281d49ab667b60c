"""Provenance: what a file was computed from, to decide whether it is still valid.

Thresholds, results, cached images and training states store a Provenance. Images are identified by a digest of their
content: a copied or moved dataset counts as the same, and an image that was replaced under the same name does not.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from runtime.device import core_count
from runtime.errors import FIX_FILE, UserError
from runtime.names import composed

VERSION = 3  # of the stored files; increased when files of an older version of the program must not be used any more


@dataclass(frozen=True)
class Content:
    """A set of image files.

    Attributes:
        count: number of files. digest: of their contents, and of everything else about them that matters.
    """

    count: int
    digest: str


@dataclass(frozen=True)
class Provenance:
    """Everything that a result was computed from. A field is None if the result does not depend on it.

    Attributes:
        weights: fingerprint of the networks' weights.
        pictures: test images with their names, or the training images.
        masks: ground-truth masks of the test images.
        nominal: nominal images that thresholds are computed from.
        textures: texture images of the synthetic anomalies.
        settings: `section.key` or name -> value; only values that JSON can represent.
        technique: name of the technique (see `inference.preprocessing`).
        region: masking region: rectangles, or the digest of its file.
        reference: digest of the reference image and method of registration.
        precision: data type of the networks.
        version: VERSION of the program that wrote the file.
    """

    weights: str | None = None
    pictures: Content | None = None
    masks: Content | None = None
    nominal: Content | None = None
    textures: Content | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    technique: str | None = None
    region: Any = None
    reference: str | None = None
    precision: str | None = None
    version: int = VERSION

    def differences(self, now: "Provenance", ignoring: Iterable[str] = ()) -> list[str]:
        """The changes from this provenance to `now`, one phrase for each; empty if a stored result is still valid.

        A field in `_OPTIONAL` that is None in one of the two does not count as changed. `ignoring`: settings to skip.
        """
        changes = []
        if self.version != now.version:
            changes.append("they are of another version of this program")
        for name, (label, shows_values) in _LABELS.items():
            old, new = getattr(self, name), getattr(now, name)
            if old == new or (None in (old, new) and name in _OPTIONAL):
                continue
            if isinstance(old, Content) and isinstance(new, Content):
                counts = f"{old.count} then, {new.count} now" if old.count != new.count else f"still {old.count}"
                changes.append(f"the {label} have changed ({counts})")
            elif shows_values:
                changes.append(f"{label} = {old}, now {new}")
            else:
                changes.append(f"the {label} changed")
        for key, old in self.settings.items():
            if key not in ignoring and old != now.settings.get(key, old):
                changes.append(f"{key} = {old}, now {now.settings[key]}")
        return changes

    def conditions(self) -> str:
        """Digest of the conditions under which results are comparable: test images, masks, precision, image size."""
        shared = {key: self.settings.get(key) for key in ("img_size", "category")}
        return digest([self.version, self.pictures, self.masks, self.precision, shared])

    def to_json(self) -> dict[str, Any]:
        """This provenance as values that JSON can represent; `from_json` reads them."""
        return asdict(self)

    @staticmethod
    def from_json(content: Any) -> "Provenance | None":
        """The provenance in the content of a JSON file; None if it is missing, damaged or of another version."""
        if not isinstance(content, dict) or content.get("version") != VERSION:
            return None
        try:
            values = {one.name: content[one.name] for one in fields(Provenance)}
            for name in ("pictures", "masks", "nominal", "textures"):
                values[name] = None if values[name] is None else Content(**values[name])
            settings = values["settings"].items()
            values["settings"] = {key: composed(one) if isinstance(one, str) else one for key, one in settings}
            return Provenance(**values)
        except (KeyError, TypeError, AttributeError):
            return None


# Field -> label in messages, and whether messages show the old and the new value.
_LABELS = {
    "weights": ("weights (their fingerprint)", False),
    "pictures": ("images", False),
    "masks": ("ground-truth masks", False),
    "nominal": ("nominal images that thresholds come from", False),
    "textures": ("textures", False),
    "technique": ("technique", True),
    "region": ("masking regions", False),
    "reference": ("reference image or method of registration", False),
    "precision": ("precision", True),
}
_OPTIONAL = ("nominal", "masks", "textures", "weights")

_KNOWN: dict[tuple, str] = {}  # path and state of a file -> digest, for the duration of the process


def file_state(path: Path) -> tuple:
    """Size, times and inode of a file. Any write changes them, so a process can detect changes without reading it."""
    stat = path.stat()
    return stat.st_size, *map(signed, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def signed(number: int) -> int:
    """A number of 64 bits as one with a sign, which JSON and SQLite can hold. Times after 2262 are larger."""
    return (number + 2**63) % 2**64 - 2**63


class Digested(Protocol):
    """What stands in for a file and knows the digest of its content."""

    @property
    def digest(self) -> str: ...


def file_digest(path: Path | Digested) -> str:
    """Digest of a file's content, 16 hexadecimal digits of SHA-256. UserError if it cannot be read."""
    if not isinstance(path, Path):
        return path.digest
    try:
        key = (str(path), *file_state(path))
        if key not in _KNOWN:
            _KNOWN[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror or error})", FIX_FILE) from error
    return _KNOWN[key]


def file_digests(paths: Sequence[Path | Digested]) -> list[str]:
    """Digests of files' contents, in order."""
    with ThreadPoolExecutor(core_count()) as pool:  # hashing releases the GIL
        return list(pool.map(file_digest, paths))


def digest(parts: Iterable[Any]) -> str:
    """Digest of a sequence of values, by their texts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def content(paths: Sequence[Path]) -> Content:
    """The Content of image files whose names and order do not matter."""
    return Content(len(paths), digest(sorted(file_digests(paths))))
