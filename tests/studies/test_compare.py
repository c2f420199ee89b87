"""Reproduced results beside committed ones."""

import json

import pytest

from studies.compare import compare, main

METRICS = {
    "AP": 0.3,
    "exits": {"exit1": {"AP": 0.2, "median_ms": 5.0, "ratio": 0.4}},
    "shares": [1.0, 0.0],
    "checkpoint_sha256": "a",
    "gates": {"blank1": 0.4},
    "machine": {"processor": "x"},
    "text": "3 of 3 seeds",
}


@pytest.fixture
def folders(tmp_path):
    """Two equal folders of results, and a function that changes one value of the first."""
    for folder in ("ours", "committed"):
        (tmp_path / folder / "metrics" / "phases").mkdir(parents=True)
        (tmp_path / folder / "tables").mkdir()
        for name in ("exits", "phases/phase_1_4_seed0"):
            (tmp_path / folder / "metrics" / f"{name}.json").write_text(json.dumps(METRICS))
        (tmp_path / folder / "tables" / "exits.csv").write_text("exit,AP,median ms,eager / full\nexit1,0.2,5,0.4\n")
    return tmp_path / "ours", tmp_path / "committed"


@pytest.mark.parametrize(
    ("name", "change", "group", "verdict"),
    [
        ("exits", {"AP": 0.3004}, "AP", "within"),
        ("exits", {"AP": 0.302}, "AP", "different"),
        ("phases/phase_1_4_seed0", {"AP": 0.302}, "AP", "within"),  # trained again
        ("phases/phase_1_4_seed0", {"AP": 0.36}, "AP", "different"),
        ("exits", {"exits": {"exit1": {"AP": 0.2, "median_ms": 9.0, "ratio": 0.9}}}, "exits", "machine"),
        ("exits", {"exits": {"exit1": {"AP": 0.3, "median_ms": 9.0, "ratio": 0.9}}}, "exits", "different"),
        ("exits", {"machine": {"processor": "y"}}, "machine", "machine"),
        ("exits", {"gates": {"blank1": 0.5}}, "gates", "machine"),  # shares of a time there, and thresholds elsewhere
        ("phases/phase_1_4_seed0", {"gates": {"blank1": 0.5}}, "gates", "different"),
        ("exits", {"checkpoint_sha256": "b"}, "checkpoint_sha256", "different"),
        ("phases/phase_1_4_seed0", {"checkpoint_sha256": "b"}, "checkpoint_sha256", "machine"),
        ("exits", {"shares": [1.0]}, "shares", "different"),
        ("exits", {"AP": None}, "AP", "different"),
        ("exits", {"text": "2 of 3 seeds"}, "text", "different"),
        ("exits", {"text": "3 of 3 runs"}, "text", "different"),
        ("exits", {"extra": 1}, "extra", "different"),
    ],
)
def test_a_changed_value_decides_its_group(folders, capsys, name, change, group, verdict):
    ours, committed = folders
    path = f"metrics/{name}.json"
    (ours / path).write_text(json.dumps(METRICS | change))
    groups = compare(ours / path, committed / path)
    assert {key: one.verdict for key, one in groups.items() if one.verdict != "equal"} == {group: verdict}
    assert main(str(ours), str(committed)) == (verdict == "different")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": equal") for line in lines) == 2 and f"  {verdict}: {group} (" in "\n".join(lines)


def test_tables_are_compared_by_column(folders, capsys):
    ours, committed = folders
    assert main(str(ours), str(committed)) == 0
    table = ours / "tables" / "exits.csv"
    table.write_text("exit,AP,median ms,eager / full\nexit1,0.2001,6,0.5\n")
    groups = compare(table, committed / "tables" / "exits.csv")
    assert [groups[key].verdict for key in ("exit", "AP", "median ms")] == ["equal", "within", "machine"]
    assert groups["eager / full"].verdict == "machine"
    table.write_text("exit,AP,median ms,eager / full\nexit1,0.2,5,0.4\nexit2,0.3,5,0.4\n")
    assert main(str(ours), str(committed)) == 1
    (ours / "tables" / "new.csv").write_text("a\n1\n")
    table.write_text("exit,AP,median ms,eager / full\nexit1,0.2,5,0.4\n")
    capsys.readouterr()
    assert main(str(ours), str(committed)) == 0 and "tables/new.csv: new" in capsys.readouterr().out
