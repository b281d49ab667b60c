"""Errors that users cause: their texts."""

import pytest

from runtime.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        "mask.png: truncated; replace it",
        "its process was killed by signal 9, often for lack of memory",
        "exit status 3",
        "the l2 loss became nan in epoch 2; lower train.lr",
        "a: b",
        "a: b: c; d; e",
    ],
)
def test_a_text_from_another_process_is_kept(text):
    assert str(UserError.from_text(text)) == text


def test_parts_of_a_text():
    error = UserError.from_text("mask.png: truncated; replace it")
    assert (error.subject, error.problem, error.fix) == ("mask.png", "truncated", "replace it")
