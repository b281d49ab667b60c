"""What something on disk was made from: the one answer to 'is this still valid?'.

Thresholds, results, kept decoded pictures and the state of a training carry a Provenance. Pictures are told apart by
their content, so a copied or moved dataset is the same, and exchanged pictures are others whatever their names.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.device import core_count
from runtime.errors import FIX_FILE, UserError

VERSION = 3  # of what is kept; raised where files of an older program must not be taken for those of this one


@dataclass(frozen=True)
class Content:
    """A number of pictures and the digest of all that matters of them."""

    count: int
    digest: str


@dataclass(frozen=True)
class Provenance:
    """What something was made from; None for what it does not depend on.

    Attributes:
        weights: fingerprint of the networks' weights.
        pictures: those it tells about: test pictures with names, or the pictures trained on.
        masks: their ground-truth masks. nominal: nominal pictures that thresholds come from.
        textures: of the synthetic anomalies.
        settings: `section.key` or name -> value, plain values that JSON can hold.
        technique: its name. region: of masking, rectangles or digest of its file. reference: digest of the picture that
            others are registered to.
        precision: that the networks ran in.
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
        """What has changed from this one to `now`, a phrase for people for each; empty where it is still valid.

        What one of both does not depend on is passed over, as are the settings in `ignoring`.
        """
        said = []
        if self.version != now.version:
            said.append("they are of another version of this program")
        for name, (what, shows_values) in _WORDS.items():
            old, new = getattr(self, name), getattr(now, name)
            if old == new or (None in (old, new) and name in _OPTIONAL):
                continue
            if isinstance(old, Content) and isinstance(new, Content):
                counts = f"{old.count} then, {new.count} now" if old.count != new.count else f"still {old.count}"
                said.append(f"the {what} have changed ({counts})")
            elif shows_values:
                said.append(f"{what} = {old}, now {new}")
            else:
                said.append(f"the {what} changed")
        for key, old in self.settings.items():
            if key not in ignoring and old != now.settings.get(key, old):
                said.append(f"{key} = {old}, now {now.settings[key]}")
        return said

    def conditions(self) -> str:
        """Digest of what results that are compared with each other must share: all but weights and technique."""
        shared = {key: self.settings.get(key) for key in ("img_size", "category")}
        return digest([self.version, self.pictures, self.masks, self.precision, shared])

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(content: Any) -> "Provenance | None":
        """The provenance that something carries; None where it has none that can be read."""
        if not isinstance(content, dict) or content.get("version") != VERSION:
            return None
        try:
            values = {one.name: content[one.name] for one in fields(Provenance)}
            for name in ("pictures", "masks", "nominal", "textures"):
                values[name] = None if values[name] is None else Content(**values[name])
            return Provenance(**values) if isinstance(values["settings"], dict) else None
        except (KeyError, TypeError):
            return None


# What people are told of each: words, and whether the values say something to them.
_WORDS = {
    "weights": ("weights (their fingerprint)", False),
    "pictures": ("pictures", False),
    "masks": ("ground-truth masks", False),
    "nominal": ("nominal pictures that thresholds come from", False),
    "textures": ("textures", False),
    "technique": ("technique", True),
    "region": ("masking regions", False),
    "reference": ("reference picture or method of registration", False),
    "precision": ("precision", True),
}
_OPTIONAL = ("nominal", "masks", "textures", "weights")

_KNOWN: dict[tuple, str] = {}  # digests of files, for the length of a run


def file_state(path: Path) -> tuple:
    """What tells quickly, and within a run reliably, that a file is still the same: any writing changes it."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def file_digest(path: Path) -> str:
    """Digest of a file's content. UserError where it cannot be read."""
    try:
        key = (str(path), *file_state(path))
        if key not in _KNOWN:
            _KNOWN[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror or error})", FIX_FILE) from error
    return _KNOWN[key]


def file_digests(paths: Sequence[Path]) -> list[str]:
    """Digests of files' contents, in order."""
    with ThreadPoolExecutor(core_count()) as pool:  # hashing works outside the interpreter's lock
        return list(pool.map(file_digest, paths))


def digest(parts: Iterable[Any]) -> str:
    """Digest of a row of values."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def content(paths: Sequence[Path]) -> Content:
    """Of pictures whose names and order do not matter."""
    return Content(len(paths), digest(sorted(file_digests(paths))))
