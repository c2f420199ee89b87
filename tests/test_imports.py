"""Imports point one way along the data flow."""

import ast

from eelib.config import ROOT

ORDER = [
    "config", "runtime", "images", "data", "anchors", "matching", "model", "losses", "confidence", "record", "routing",
    "recorded", "architecture", "recorded_loss", "supervision", "train", "records", "evaluate", "routed_ap",
    "calibrate", "gates", "policies", "guarantee", "curves", "release", "latency", "deploy", "quantise", "bench",
    "prune", "diagnose", "feature_cache", "phases", "variants", "search", "systems", "compress", "inference",
    "mechanisms", "scorecard", "causal", "figures",
    "figures_routing", "record_figures", "tables", "comparison", "reports", "batch", "detect_command", "route_command",
    "__main__",
]  # fmt: skip


def test_imports_follow_the_data_flow():
    modules = {path.stem: path for path in (ROOT / "eelib").glob("*.py") if path.stem != "__init__"}
    assert modules.keys() == set(ORDER)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("eelib"):
                parts = node.module.split(".")[1:] or [alias.name for alias in node.names]
                for imported in parts:
                    assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"
