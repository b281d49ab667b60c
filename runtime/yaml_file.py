"""Read YAML settings files, and edit them without losing comments. Only config.py uses this module."""

import io
import itertools
import re
import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.nodes import CollectionNode, ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from ruamel.yaml.tag import Tag

from runtime.errors import UserError

TEXT = "tag:yaml.org,2002:str"
WHOLE, NUMBER = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
MOST_CHARACTERS = 2**19  # of a settings file; the program's own has 2**14
MOST_NODES = 100_000  # values of a settings file, with those that aliases repeat
DEEPEST = 50  # levels of brackets
DIGITS = re.compile(r"[-+]?0[0-9_]+")  # with a leading zero


def read(path: Path) -> str:
    """Text of a settings file; UserError if it cannot be read."""
    if path.is_fifo():
        raise UserError(path, "is a pipe, and settings are read more than once", "write them to a file")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(MOST_CHARACTERS + 1)
    except FileNotFoundError as error:
        raise UserError(path, "no such file", "set --config to a settings file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            path, f"cannot be read as a settings file ({error})", "set --config to another settings file"
        ) from error
    if len(text) > MOST_CHARACTERS:
        raise UserError(path, f"has more than {MOST_CHARACTERS} characters", "set --config to a settings file")
    return text


class _Resolver(VersionedResolver):
    """Resolves types of plain values as in YAML 1.1, except for what nobody means: y and n, and 1:30, are text.

    In YAML 1.1 the former are booleans, and the latter is a number to base 60.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The YAML tag (type) of a node."""
        if kind is ScalarNode and value in ("y", "Y", "n", "N"):
            return self.DEFAULT_SCALAR_TAG
        tag = super().resolve(kind, value, implicit)
        if kind is ScalarNode and tag in (WHOLE, NUMBER) and ":" in value:
            return self.DEFAULT_SCALAR_TAG
        is_number = kind is ScalarNode and implicit[0] and DIGITS.fullmatch(value)  # also 0089, which cannot be octal
        return Tag(suffix=WHOLE) if is_number else tag


class _Constructor(SafeConstructor):
    """Values of nodes; a leading zero, as in epoch_0010.pt, does not make a number octal, as it does in YAML 1.1."""

    def construct_document(self, node: Any) -> Any:
        """The value of a whole text. ConstructorError where aliases make it huge, or make it contain itself."""
        counts: dict[int, int] = {}

        def count(one: Any) -> int:
            if counts.setdefault(id(one), 0):
                return counts[id(one)]
            total = 1
            for child in one.value if isinstance(one, CollectionNode) else ():
                for part in child if isinstance(child, tuple) else (child,):
                    if counts.get(id(part)) == 0 or total > MOST_NODES:
                        problem = "an alias within its own value" if total <= MOST_NODES else "too many values"
                        raise ConstructorError(problem=problem, problem_mark=one.start_mark)
                    total += count(part)
            counts[id(one)] = total
            return total

        count(node)
        return super().construct_document(node)

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number."""
        text = self.construct_scalar(node)
        return int(text.replace("_", "")) if DIGITS.fullmatch(text) else super().construct_yaml_int(node)


_Constructor.add_constructor(WHOLE, _Constructor.construct_yaml_int)


def _reader(kind: str) -> YAML:
    """A YAML reader. kind: 'safe' for typed values, 'base' for texts only."""
    yaml = YAML(typ=kind, pure=True)
    yaml.version, yaml.Resolver = (1, 1), _Resolver
    if kind == "safe":
        yaml.Constructor = _Constructor
    return yaml


def _loaded(yaml: YAML, text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # of 1e-4, which is accepted as a number, or an anchor twice
        return yaml.load(text)


def parse(text: str, source: str) -> Any:
    """Values of a YAML text; UserError with `source`, line and column if it is not valid YAML."""
    depths = itertools.accumulate((bracket in "[{") - (bracket in "]}") for bracket in re.findall(r"[\[\]{}]", text))
    try:
        if max(depths, default=0) > DEEPEST:  # ruamel takes seconds for it
            raise RecursionError
        return _loaded(_reader("safe"), text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or error.context).splitlines()[0][:200]
        raise UserError(f"{source}{where}", f"not valid YAML ({problem})", "fix that line") from error
    except RecursionError as error:
        raise UserError(source, "nested too deeply", "write sections with keys below them") from error
    except MemoryError:
        raise
    except Exception as error:  # many types: of impossible dates, lists as keys, values that do not fit their tag
        raise UserError(source, f"not valid YAML ({' '.join(str(error).split())})", "fix the value") from error


def as_written(text: str, *path: str) -> str | None:
    """The unparsed text of the value at a path of keys in a valid YAML text; None if there is no single value."""
    try:
        value = _loaded(_reader("base"), text)
    except YAMLError:  # as texts two keys can be the same
        return None
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def edit(path: Path | str, changes: dict[str, Any]) -> str:
    """Text of a settings file with new values; everything else is unchanged, comments included.

    Args:
        changes: `section.key` -> new value.

    Raises:
        UserError: the file cannot be read or is not valid YAML.
    """
    yaml_, stream = _Editor(), io.StringIO()
    try:
        document = _loaded(yaml_, read(Path(path))) or {}
    except YAMLError as error:
        raise UserError(path, f"not valid YAML ({' '.join(str(error).split())})", "fix the file") from error
    for key, value in changes.items():
        section, name = key.split(".")
        if document.get(section) is None:
            document[section] = {}
        document[section][name] = _written(value)
    yaml_.dump(document, stream)
    return stream.getvalue()


class _Editor(YAML):
    """YAML writer that keeps comments. Its output has the same meaning in YAML 1.1 and YAML 1.2."""

    def __init__(self):
        super().__init__()
        self.preserve_quotes, self.width = True, 4096
        self.representer.add_representer(float, self._float)

    @staticmethod
    def _float(representer: Any, value: float) -> Any:
        text = repr(value)  # YAML 1.1 reads a number only with a decimal point: 1.0e-05, not 1e-05
        return representer.represent_scalar(NUMBER, text if "." in text else text.replace("e", ".0e"))


def _written(value: Any) -> Any:
    """A value as it is written: lists on one line, and quotes around texts that would be read as another type."""
    if isinstance(value, list):
        items = CommentedSeq(map(_written, value))
        items.fa.set_flow_style()
        return items
    if isinstance(value, dict):
        return {_written(key): _written(item) for key, item in value.items()}
    if isinstance(value, str) and any(
        kind((1, 1)).resolve(ScalarNode, value, (True, False)) != TEXT for kind in (_Resolver, VersionedResolver)
    ):
        return SingleQuotedScalarString(value)
    return value
