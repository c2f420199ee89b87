"""Check the links of a built site: every local link and picture leads to a file, and every anchor to a place in it."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The targets that a page links to, and the places in it that can be linked to."""

    def __init__(self, file: Path):
        super().__init__()
        self.targets, self.places = set(), {"", "__toc"}
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name"):
                self.places.add(value)
            elif key in ("href", "src") and value and not value.startswith(("data:", "mailto:", "javascript:")):
                self.targets.add(value)


def broken(site: Path) -> list[str]:
    """Links that lead nowhere, each as "page: target"."""
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    found = []
    for file, page in pages.items():
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            goal = goal / "index.html" if goal.is_dir() else goal
            known = goal.exists() and (goal not in pages or unquote(parts.fragment) in pages[goal].places)
            if not known and file.name != "404.html":  # it is served from the root of a site, and links to there
                found.append(f"{file.relative_to(site)}: {target}")
    if not pages:
        found.append(f"{site}: no page; expected what `make site` writes")
    return found


if __name__ == "__main__":
    lost = broken(Path(sys.argv[1]).resolve())
    sys.exit("\n".join(lost) if lost else 0)
