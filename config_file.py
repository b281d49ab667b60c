"""Settings files and the command line -> Config: read, check, edit."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config import Config, effects, fields_of
from config_types import allowed_values, folder_name
from runtime import yaml_file
from runtime.cli import CONFIG
from runtime.errors import UserError, UserErrors

REGIONS = "masking.regions"
SHOWN = 200  # characters of a value in a message
MOST_MISTAKES = 20  # that are named at once
UNUSED_KEYS = {"input_channel", "save_txt", "comparison"}  # of earlier code


def _unknown_key(source: str, key: str) -> UserError:
    if key.split(".")[-1] in UNUSED_KEYS:
        return UserError(f"{source} {key}", "this key of earlier code has no use here", "remove it")
    known = list(effects())
    candidates = known if "." in key else list(Config.model_fields)
    same_name = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
    near = same_name or difflib.get_close_matches(key, candidates, 1, 0)
    return UserError(f"{source} {_shortened(key)}", "unknown key", f"the nearest known one is {near[0]}")


def _shortened(text: str) -> str:
    """A text for a message, of at most SHOWN characters."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _is_text(key: str) -> bool:
    section, _, name = key.partition(".")
    field = fields_of(section)[name]
    return field.annotation in (str, str | None) or key == "data.load_epoch"


def _wrong_value(source: str, error: dict[str, Any], text: str) -> UserError:
    """source: the file or flag that has the value. error: pydantic's. text: of the settings file."""
    path = error["loc"]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown_key(source, ".".join(map(str, path[:2])))
    field = fields_of(path[0]).get(path[1]) if len(path) > 1 else None
    value = _shortened(repr(error["input"]) if isinstance(error["input"], str) else str(error["input"]))
    allowed = _shortened(allowed_values(error, field, yaml_file.as_written(text, *path)))
    return UserError(f"{source} {'.'.join(map(str, path))} = {value}", "not an allowed value", f"it {allowed}")


Files = Path | str | Sequence[Path | str]


def _paths(files: Files) -> list[Path]:
    return [Path(files)] if isinstance(files, (Path, str)) else list(map(Path, files)) or [CONFIG]


def load_config(files: Files, overrides: Iterable[str] = ()) -> Config:
    """Read and check settings.

    Args:
        files: YAML files, of which the later one wins; none: config.yaml.
        overrides: `section.key=value`, the value in YAML; for a key of text type taken as written.

    Raises:
        UserError: unreadable file, bad YAML (line and column), unknown keys, values out of range; all at once.
    """
    values: dict[str, Any] = {}
    file_of: dict[tuple[str, ...], tuple[Path, str]] = {}  # (section,) and (section, key) -> file, its text
    for path in _paths(files):
        text = yaml_file.read(path)
        of_file = yaml_file.parse(text, str(path))
        if of_file is not None and not isinstance(of_file, dict):
            raise UserError(
                path, f"must hold the sections {', '.join(Config.model_fields)}", "see config.yaml beside main.py"
            )
        for section, keys in (of_file or {}).items():
            keys, before = ({} if keys is None else keys), values.get(section)
            file_of[str(section),] = path, text
            for key in keys if isinstance(keys, dict) else ():
                file_of[str(section), str(key)] = path, text
            values[section] = before | keys if isinstance(before, dict) and isinstance(keys, dict) else keys
    problems, overridden = [], set()
    for override in overrides:
        key, equals, written = override.partition("=")
        key, region = key.strip(), {}
        if not equals:
            raise UserError(f"--set {override}", "is not section.key=value", "write e.g. --set data.category=bottle")
        if key.startswith(f"{REGIONS}."):  # of one category
            category, key = key[len(REGIONS) + 1 :], REGIONS
            region = {category: yaml_file.parse(written, f"--set {REGIONS}.{category}")}
        if key not in effects():
            problems.append(_unknown_key("--set", key))
            continue
        overridden.add(key)
        section, name = key.split(".")
        if isinstance(values.setdefault(section, {}), dict):
            there = values[section].get(name)
            if region:
                values[section][name] = (there if isinstance(there, dict) else {}) | region
            else:
                values[section][name] = written if _is_text(key) else yaml_file.parse(written, f"--set {key}")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        for item in error.errors()[:MOST_MISTAKES]:
            place = tuple(map(str, item["loc"][:2]))
            path, text = file_of.get(place) or file_of.get(place[:1]) or (CONFIG, "")
            source = "--set" if ".".join(place) in overridden else f"{path}:"
            problems.append(_wrong_value(source, {**item}, text))
    if problems:
        raise UserErrors(problems) if len(problems) > 1 else problems[0]
    for place, (path, _) in file_of.items():
        if path != CONFIG and len(place) == 2:
            config._sources[".".join(place)] = f"--config {path}"
    config._sources |= dict.fromkeys(overridden, "--set")
    named = config.data.table or config.data.coco
    if named and not config.is_explicit("data.category"):
        try:
            config = config.with_values({"data.category": folder_name(Path(named).stem)})
        except ValueError as error:
            source = f"data.{'table' if config.data.table else 'coco'} = {_shortened(named)}"
            raise UserError(source, f"its name, the category, {error}", "set data.category") from error
    return config


def edit_config(path: Path | str, changes: dict[str, Any]) -> str:
    """Text of a settings file with values changed (`section.key` -> value) and everything else kept, comments too."""
    return yaml_file.edit(path, changes)


def settings_text(files: Files, config: Config) -> str:
    """Text of the first settings file, comments kept, with every value as it is in `config`."""
    sections = config.model_dump(mode="json").items()
    return yaml_file.edit(
        _paths(files)[0], {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}
    )
