"""reporting/predictions.py: the page of very many predictions; engine/test_predict.py has the other files."""

import re

from messages import assert_line

from reporting import predictions


def test_of_very_many_images_the_page_shows_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "MOST_SHOWN", 3)  # the real number takes minutes
    written = predictions.Predictions(tmp_path, None, {}, "none", "refuse")
    written.write([predictions.row_of_error(f"{i}.png", "broken") for i in (0, 1, 2, 3, 2)])
    written.write_report("many", lambda path: path, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [name for name in ("0.png", "1.png", "2.png", "3.png") if f'"{name}"' in page] == ["1.png", "2.png", "3.png"]
    assert_line(page, "3 of 4", re.compile(r"\b3\b.*\b4\b.*\b3\b"))  # shown, of all, failed
