"""Imports point one way along the data flow."""

import ast

from eelib.config import ROOT

ORDER = [
    "config_rules", "config", "files", "runtime", "images", "sources", "data", "anchors", "matching", "model",
    "losses", "confidence", "record", "routing", "recorded", "architecture", "recorded_loss", "supervision",
    "checkpoints", "train", "widen", "records", "evaluate", "routed_ap", "calibrate", "gates", "splits", "policies",
    "guarantee", "curves", "validation", "release", "predictability", "latency", "deploy", "quantise", "bench", "prune",
    "diagnose", "feature_cache", "phases", "learning_curve", "generalisation", "variants", "search", "systems",
    "alternatives", "compress",
    "inference", "mechanisms", "scorecard", "causal", "ablation", "figures", "figures_routing", "record_figures",
    "tables", "comparison", "reports", "batch", "data_command", "detect_command", "route_command", "commands",
    "__main__",
]  # fmt: skip
# The renderer of the data set: an optional part that only the command line and the notebooks know.
SHOWROOM_ORDER = [
    "roles", "catalogue", "models", "textures", "materials", "layout", "recipes", "room", "view", "film", "render",
    "annotate", "dataset", "join", "datasheet", "command",
]  # fmt: skip


def test_imports_follow_the_data_flow():
    modules = {path.stem: path for path in (ROOT / "eelib").glob("*.py") if path.stem != "__init__"}
    assert modules.keys() == set(ORDER)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("eelib"):
                parts = node.module.split(".")[1:] or [alias.name for alias in node.names]
                if parts[0] == "showroom":
                    assert name == "__main__", f"{name} imports the optional part"
                    continue
                for imported in parts:
                    assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


def test_the_renderer_imports_follow_its_data_flow_and_no_torch():
    modules = {path.stem: path for path in (ROOT / "eelib" / "showroom").glob("*.py") if path.stem != "__init__"}
    assert modules.keys() == set(SHOWROOM_ORDER)
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not node.module.startswith("eelib"):
                continue
            parts = node.module.split(".")[1:]
            if parts[0] != "showroom":
                assert parts[0] in ("config", "files", "sources"), f"{name} imports {parts[0]}"
                continue
            for imported in parts[1:] or [alias.name for alias in node.names]:
                if imported in SHOWROOM_ORDER:
                    assert SHOWROOM_ORDER.index(imported) < SHOWROOM_ORDER.index(name), f"{name} imports {imported}"
        at_import = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        assert not at_import & {"torch", "mitsuba", "drjit", "embreex", "pyoidn", "cv2"}, name
