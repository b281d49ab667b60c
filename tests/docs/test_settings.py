"""The table of settings, and the settings and flags that pages name."""

import importlib
import re
import sys

import pytest
from pages import PAGES, ROOT, fenced, spans

from config import effects
from docs import settings_table

KEY = re.compile(r"\b(?:data|model|train|metrics|masking)\.[a-z]\w*")
OTHER_FLAGS = {  # of ray start, docker, and OpenVINO Model Server
    *("--head", "--address", "--gpus", "--shm-size", "--tmpfs"),
    *("--shape", "--layout", "--model_name", "--model_path", "--plugin_config"),
}
FILES = (".py", ".json", ".txt")


def test_the_table_is_up_to_date():
    up_to_date = settings_table.PAGE.read_text(encoding="utf-8") == settings_table.text()
    assert up_to_date, "run: python -m docs.settings_table"


def test_settings_that_are_named_exist():
    for page in PAGES:
        for text in spans(page) + fenced(page, ""):
            for key in KEY.findall(text):
                assert key in effects() or key.endswith(FILES), f"{page}: {key}"


@pytest.fixture
def flags(monkeypatch, capsys) -> str:
    """What the programs say of their flags, and the sources of what else has flags."""
    for name in ("main", "train_all", "evaluate_checkpoints", "check_best_model", "make_sample"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
        with pytest.raises(SystemExit):
            importlib.import_module(name).main()
    others = [
        path
        for pattern in ("benchmarks/*.py", "deploy/*", "images/*.py")
        for path in ROOT.glob(pattern)
        if path.is_file()
    ]
    return capsys.readouterr().out + "".join(path.read_text(encoding="utf-8") for path in others)


def test_flags_that_are_named_exist(flags):
    for page in PAGES:
        for text in spans(page):
            for flag in re.findall(r"^--[a-z_-]+", text):
                assert re.search(rf"{flag}\b", flags) or flag in OTHER_FLAGS, f"{page}: {flag}"
