"""The README: its numbers are those of the metrics, and its commands exist."""

import json
import re
import shlex

import pytest

from eelib.config import ROOT
from studies.report import readme

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(
    r"^```$\n(.*?)^```$",
    re.sub(r"^```\w+$.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE),
    re.DOTALL | re.MULTILINE,
)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
EELIB = [part.strip() for line in COMMANDS for part in line.split("&&") if part.strip().startswith("eelib ")]


def test_the_numbers_are_those_of_the_metrics():
    if not (ROOT / "reports" / "metrics" / "plane.json").exists():
        pytest.skip("the plane was not measured yet")
    assert readme.filled(TEXT, readme.blocks(ROOT / "reports")) == TEXT


@pytest.mark.parametrize("command", EELIB)
def test_a_command_of_the_readme_can_be_parsed(command):
    from eelib.cli import add_studies, app

    add_studies()
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_it_is_short_and_names_files_that_exist():
    assert len(TEXT.splitlines()) < 200 and len(EELIB) > 10
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"\b(?:data|params|notebooks)/[\w/]+\.\w+", TEXT):
        assert (ROOT / path).exists() or path == "params/my.yaml", path
    tree = TEXT.split("## Which file to touch")[1].split("```")[1]
    library, deploy = tree.split("deploy/")[0], tree.split("deploy/")[1].split("cli.py")[0]
    assert [name for name in re.findall(r"\w+\.py", library) if not (ROOT / "eelib" / name).exists()] == []
    assert [name for name in re.findall(r"\w+\.py", deploy) if not (ROOT / "eelib" / "deploy" / name).exists()] == []


def test_blocks_stand_between_their_marks():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert readme.filled(text, {"x": "new"}) == "a\n<!-- x -->\n\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="README.md: no marks '<!-- y -->'"):
        readme.filled(text, {"y": "new"})


def test_the_table_takes_ap_from_the_manifest_and_times_from_the_plane():
    exits = {"exit1": {"median_ms": 3.04, "time_ratio": 0.3}, "full": {"median_ms": 10.0, "time_ratio": 1.0}}
    plane = {"systems": [{"name": "mine", "seed": 0, "exits": exits}]}
    manifest = {"mine.pth": {"test": {name: {"AP": 0.4, "AP50": 0.7} for name in exits}}, "old.pth": {"test": {}}}
    rows = readme.released_table(manifest, json.loads(json.dumps(plane))).to_dict("records")
    assert [row["exit"] for row in rows] == ["exit1", "full"]
    assert rows[0]["ms"] == "3.0" and rows[1]["time / baseline"] == 1.0
