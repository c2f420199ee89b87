"""Links of the tracked Markdown lead to tracked files, and what is written for pages is what they link to."""

import re
import subprocess
from pathlib import Path

import pytest

from eelib.config import ROOT

LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)|`(reports/[\w/.]+\.\w+)`")  # a link, or a report named in code


def tracked(*patterns):
    """Tracked files, relative to the checkout."""
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True, text=True)
    return [Path(name) for name in listed.stdout.split("\0")[:-1]]


def links(page):
    """Files that a page links to, relative to the checkout."""
    found = [link or "/" + code for link, code in LINK.findall((ROOT / page).read_text())]
    local = [target for target in found if "://" not in target and not target.startswith("mailto:")]
    targets = [Path(target[1:]) if target.startswith("/") else page.parent / target for target in local]
    return [(ROOT / target).resolve().relative_to(ROOT) for target in targets]


PAGES = tracked("*.md")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_tracked_files(page):
    assert [str(target) for target in links(page) if target not in tracked()] == []
