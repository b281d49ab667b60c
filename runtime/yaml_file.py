"""Settings files: YAML read, and edited with its comments kept. config.py alone uses this."""

import io
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MantissaNoDotYAML1_1Warning, MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from runtime.errors import UserError

TEXT = "tag:yaml.org,2002:str"
NUMBER = "tag:yaml.org,2002:float"


def read(path: Path) -> str:
    """Text of a file; UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(path, "no such file", "name a settings file with --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read as a settings file ({error})", "name another with --config") from error


class _Resolver(VersionedResolver):
    """Types of plain values as YAML 1.1 has them, but that y and n are text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node."""
        if kind is ScalarNode and value in ("y", "Y", "n", "N"):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def _reader(kind: str) -> YAML:
    """kind: safe for values, base for texts alone."""
    yaml = YAML(typ=kind, pure=True)
    yaml.version, yaml.Resolver = (1, 1), _Resolver
    return yaml


def parse(text: str, source: str) -> Any:
    """Values of a YAML text; UserError that names `source`, line and column where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MantissaNoDotYAML1_1Warning)  # 1e-4 is a number here
            return _reader("safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or error.context).splitlines()[0]
        raise UserError(f"{source}{where}", f"not valid YAML ({problem})", "fix it there") from error
    except (YAMLError, ValueError) as error:  # impossible dates are a ValueError
        raise UserError(source, f"not valid YAML ({' '.join(str(error).split())})", "fix the value") from error


def as_written(text: str, *path: str) -> str | None:
    """The text of a value as it stands in a valid YAML text, below these keys; None where none stands there."""
    value = _reader("base").load(text)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def edit(path: Path | str, changes: dict[str, Any]) -> str:
    """Text of a settings file with values changed and everything else kept, comments too.

    Args:
        changes: `section.key` -> value.
    """
    yaml_, stream = _Editor(), io.StringIO()
    try:
        document = yaml_.load(read(Path(path))) or {}
    except YAMLError as error:
        raise UserError(path, f"not valid YAML ({' '.join(str(error).split())})", "fix it there") from error
    for key, value in changes.items():
        section, name = key.split(".")
        if document.get(section) is None:
            document[section] = {}
        document[section][name] = _written(value)
    yaml_.dump(document, stream)
    return stream.getvalue()


class _Editor(YAML):
    """Keeps comments; what it writes means the same to every reader of YAML, also of its older version."""

    def __init__(self):
        super().__init__()
        self.preserve_quotes, self.width = True, 4096
        self.representer.add_representer(float, self._float)

    @staticmethod
    def _float(representer: Any, value: float) -> Any:
        text = repr(value)  # a number only with a point, as in 1.0e-05
        return representer.represent_scalar(NUMBER, text if "." in text else text.replace("e", ".0e"))


def _written(value: Any) -> Any:
    """A value as it is to be written: lists in one line, texts in quotes where a reader would take them for another."""
    if isinstance(value, list):
        items = CommentedSeq(map(_written, value))
        items.fa.set_flow_style()
        return items
    if isinstance(value, dict):
        return {_written(key): _written(item) for key, item in value.items()}
    if isinstance(value, str) and _Resolver((1, 1)).resolve(ScalarNode, value, (True, False)) != TEXT:
        return SingleQuotedScalarString(value)
    return value
