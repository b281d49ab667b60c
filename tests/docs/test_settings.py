"""The table of settings, and the settings and flags that pages name."""

import re

from pages import PAGES, ROOT, fenced, spans

from config import effects
from docs import settings_table

KEY = re.compile(r"\b(?:data|model|train|metrics|masking)\.[a-z]\w*")
OTHER_FLAGS = {"--head", "--address"}  # of ray start
FILES = (".py", ".json", ".txt")


def test_the_table_is_up_to_date():
    up_to_date = settings_table.PAGE.read_text(encoding="utf-8") == settings_table.text()
    assert up_to_date, "run: python -m docs.settings_table"


def test_settings_that_are_named_exist():
    for page in PAGES:
        for text in spans(page) + fenced(page, ""):
            for key in KEY.findall(text):
                assert key in effects() or key.endswith(FILES), f"{page}: {key}"


def test_flags_that_are_named_exist():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for pattern in ("*.py", "runtime/cli.py", "benchmarks/*.py", "deploy/*", "images/*.py")
        for path in ROOT.glob(pattern)
    )
    modes = set(re.findall(r'^        \("(\w+)", "', sources, re.MULTILINE))
    for page in PAGES:
        for text in spans(page):
            for flag in re.findall(r"^--[a-z_]+", text):
                assert f'"{flag}"' in sources or flag[2:] in modes or flag in OTHER_FLAGS, f"{page}: {flag}"
