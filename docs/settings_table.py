"""Writes settings.md beside this file: what each setting affects, taken from its declaration in config.py.

python -m docs.settings_table
"""

from pathlib import Path
from typing import Any

from config import Affects, Config, effects

PAGE = Path(__file__).with_name("settings.md")
WHAT = {"weights": "weights", "maps": "anomaly maps", "thresholds": "thresholds", "display": "display"}
RESUMED = {"fixed": "fixed", "extendable": "extends the training", "free": "free"}
NEW_IMAGES = {"always": "the checkpoint's", "unless set": "the checkpoint's, unless set", "never": "as set"}
HEAD = """\
# Settings

For those who change a setting and want to know what has to be computed again: what each setting affects, and whether
a resumed run and inference on new images take another value. Written by `python -m docs.settings_table`.

[config.yaml](../config.yaml) explains each setting, with its range and the value of the original. A setting is changed
in a file of your own (`--config PATH`, short `-cfg`, repeatable: the later file wins), which names only what differs
from config.yaml, or on the command line (`--set section.key=value`, repeatable). An unknown key or a value out of range
stops a program before it starts. Numbers are decimal, also with zeros in front: `0010` is 10.

- **affects**: *weights*: train again. *anomaly maps*: compute thresholds and results again. *thresholds*: compute these
  again. *display*: which thresholds are applied, and what is drawn or listed. *nothing*: where files are, which
  checkpoint is used, how the program runs.
- **resumed run**: *fixed*: a run resumes only with the value that it began with. *extends the training*: another value
  changes how long and how fast the run learns from now on. *free*: any value. Folders may have moved, as long as they
  hold the same data.
- **new images**: what `--predict`, `--watch` and `--export` use: *the checkpoint's* value, and another one is refused;
  the checkpoint's *unless set* by `--config` or `--set`; or the value *as set*. `data.white_level: auto` is the value
  that was found in the training images.

| setting | default | affects | resumed run | new images |
|---|---|---|---|---|
"""


def _text(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _row(key: str, one: Affects) -> str:
    section, _, name = key.partition(".")
    what = [WHAT[word] for word in one.what] or ["nothing"]
    if one.only_with:
        what[0] += f" (only with `{one.only_with}`)"
    default = _text(getattr(Config.model_fields[section].default, name))
    cells = f"`{key}`", f"`{default}`", ", ".join(what), RESUMED[one.resumes], NEW_IMAGES[one.from_checkpoint]
    return f"| {' | '.join(cells)} |\n"


def text() -> str:
    """The page."""
    return HEAD + "".join(_row(key, one) for key, one in effects().items())


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
