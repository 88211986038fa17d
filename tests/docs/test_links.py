"""Whoever begins at the front door reaches every page, and no link leads nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "index.md"
READMES = [
    ROOT / "README.md",
    *(ROOT / folder / "README.md" for folder in ("bench", "connectors", "docker", "examples", "examples/shop")),
]
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
TO_BE_WRITTEN = {"docs/explanation/simulation.md"}
SHELVES = ["tutorial", "how-to", "reference", "explanation"]

_link = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_code = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its code: a bracket there is no link."""
    return _code.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The file and the anchor that each relative link of a page leads to."""
    # Code in a link's text goes first, and leaves the link.
    for target in _link.findall(prose(page)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = unquote(target).partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in a link, as GitHub does it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?)\s*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file that is there and, in a page, to a heading that is there."""
    for path, anchor in links(page):
        assert path.exists(), f"{named(page)}: {path}"
        assert path.is_relative_to(ROOT), f"{named(page)}: {path} is outside the project"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{named(page)}: {named(path)} has no heading #{anchor}"


def test_every_page_is_named_at_the_front_door() -> None:
    """By the index itself, not by the way of another page."""
    named_there = {path for path, _ in links(INDEX)}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != INDEX} <= named_there


def test_the_readme_leads_to_the_front_door() -> None:
    assert INDEX in {path for path, _ in links(ROOT / "README.md")}


def test_the_shelves_stand_in_the_order_of_reading() -> None:
    """Learn, do, look up, understand: a page stands under the heading of its folder, and nowhere else."""
    parts = re.split(r"^## .*$", prose(INDEX), flags=re.MULTILINE)[1:]
    assert len(parts) == len(SHELVES)
    for shelf, part in zip(SHELVES, parts, strict=True):
        folders = {target.split("/")[0] for target in _link.findall(part) if not target.startswith("..")}
        assert folders == {shelf}


def test_every_picture_is_shown_by_a_page() -> None:
    shown = {path for page in PAGES for path, _ in links(page)}
    assert set((ROOT / "docs").rglob("*.svg")) <= shown


def test_every_page_that_the_code_refers_to_is_there() -> None:
    """In hints, docstrings and comments; the hint is read far from the source, so it names the page from the top."""
    said: set[str] = set()
    for folder in ("synckit_streams", "connectors", "bench", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            said |= set(re.findall(r"\bdocs/[\w/-]+\.(?:md|svg|py)\b", path.read_text(encoding="utf-8")))
    assert "docs/reference/limits.md" in said
    assert {page for page in said if not (ROOT / page).exists()} <= TO_BE_WRITTEN


# ------------------------------------------------------------------------------------------ does this file do its work?


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("SK201 FrameMalformed", "sk201-framemalformed"),
        ("What's `data`, and *why*?", "whats-data-and-why"),
        ("start_auto_sync", "start_auto_sync"),
    ],
)
def test_a_heading_has_the_anchor_that_github_gives_it(tmp_path: Path, heading: str, anchor: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# One\n\n```sh\n# no heading\n```\n\n## {heading}\n")
    assert anchors(page) == {"one", anchor}


def test_a_link_is_found_and_code_is_none(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](b.md#c) ![d](e.svg) [`f`](g.md)\n[two\nlines](h.md) [web](https://x.y) `[x](no.md)`\n")
    assert [(path.name, anchor) for path, anchor in links(page)] == [
        *[("b.md", "c"), ("e.svg", ""), ("g.md", ""), ("h.md", "")]
    ]
