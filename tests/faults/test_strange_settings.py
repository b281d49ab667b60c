"""Settings files that fill memory, or hold names and keys that nothing can have: short errors of the user."""

import itertools
import re
import time

import pytest
from messages import raises_user_error

from config_file import load_config


def settings_file(folder, text):
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return folder / "c.yaml"


REPEATED = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        f"{REPEATED}data: {{run_name: *i}}\n",
        MERGED,
        "data: &d\n  run_name: *d\n",
        f"data:\n  run_name: {'[' * 3000}",
        f"data:\n  run_name:\n  {'- ' * 3000}",
        "".join(f"{' ' * depth}a:\n" for depth in range(600)),
        f"data: {{split_by: '{'(' * 4000}a{')' * 4000}'}}\n",
        f"data: {{category: {'x' * 2**20}}}\n",
        "\n".join(f"key{number}: 1" for number in range(3000)),
        f"train: {{seed: {'9' * 4000}}}\n",
        f"!{'x' * 20_000} data",
    ],
    ids=["aliases", "merges", "itself", "brackets", "lists", "sections", "groups", "size", "keys", "digits", "tag"],
)
def test_a_huge_or_deep_settings_file_is_a_short_user_error_at_once(tmp_path, text):
    """Aliases of aliases filled memory, brackets took seconds and ended with a traceback."""
    path = settings_file(tmp_path, text)
    start = time.perf_counter()
    with raises_user_error("c.yaml") as caught:
        load_config(path)
    assert time.perf_counter() - start < 5 and len(str(caught.value)) < 3000


@pytest.mark.parametrize("key", ["run_name", "category", "data_path", "checkpoint_path"])
@pytest.mark.parametrize("value", [r"a\0b", r"\uD800", "a" * 256, "ä" * 128])
def test_names_that_no_file_can_have_are_user_errors(tmp_path, key, value):
    path = settings_file(tmp_path, f'data: {{{key}: "{value}"}}\n')
    with raises_user_error("c.yaml", f"data.{key}", re.compile(r"\b255\b|plain")):
        load_config(path)


@pytest.mark.parametrize("text", ["? [a, b]\n: 3\n", "1: 2\n", "null: {a: 3}\n", "data: {2001-12-14: 3}\n"])
def test_keys_of_another_type_are_named_with_their_file(tmp_path, text):
    with raises_user_error(tmp_path / "c.yaml"):
        load_config(settings_file(tmp_path, text))
