"""Links, files that pages name, and the form of the pages."""

import re
from pathlib import Path

import pytest
from pages import DOCS, FENCED, PAGES, ROOT, spans

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OF_PROJECT = re.compile(r"[\w./-]+(\.(py|md|cpp|toml|yaml|cff)|/)|Makefile")
WRITTEN = {"best_models.md", "seeds.md", "categories.md"}  # by the programs, or with the user's images
FOLDERS_OF_RUNS = {"checkpoints", "results", "sample", "datasets", "dtd"}


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    """Files with a suffix of the project's, and what is below its folders."""
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()} - FOLDERS_OF_RUNS
    for text in spans(page):
        is_below = text.split("/")[0] in rooms and re.fullmatch(r"[\w./-]+", text)
        is_file = OF_PROJECT.fullmatch(text) and not text.endswith("/")
        if (is_below or is_file) and text not in WRITTEN:
            assert (ROOT / text).exists() or (page.parent / text).exists(), text


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 220
    assert {f"docs/{page.name}" for page in DOCS} <= {link.partition("#")[0] for link in LINK.findall(text)}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_begins_with_who_needs_it(page):
    title, blank, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ") and not blank and first.startswith("For those who")
