"""The four written reports, filled from measured results: ``eelib report``.

A template holds sentences; numbers come from ``reports/metrics`` and ``data/record``, and a
sentence that judges an outcome is chosen by a number. A key that a template asks for and a
metrics file lacks is an error that names both.
"""

import json
from pathlib import Path

import jinja2
import pandas as pd

from eelib import tables
from eelib.config import ROOT, ConfigError
from eelib.evaluate import decision
from eelib.files import write_atomic
from eelib.model import EXIT_NAMES
from studies.compress.alternatives import clear, of_every_seed, verdict
from studies.goals import load_goals
from studies.phases import analysis as record
from studies.phases.ablation import ablation_table, ladder_table
from studies.report import comparison

TEMPLATES = Path(__file__).parent / "templates"
# Report to the metrics files without which it says nothing.
REPORTS = {
    "PHASE_COMPARISON_TABLE.md": ("phases.json",),
    "EXECUTIVE_SUMMARY.md": ("baseline.json", "exits.json", "phases.json"),
    "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md": ("baseline.json", "exits.json", "phases.json"),
    "INFERENCE_ISSUES_PHASE1_4.md": ("detector_1_4.json", "phases.json"),
}


class Values(dict):
    """A mapping of a metrics file whose missing keys are named with the file."""

    def __init__(self, values: dict, file: Path | str, path: str = ""):
        super().__init__({key: _wrap(value, file, f"{path}{key}") for key, value in values.items()})
        self.origin = (file, path)

    def __missing__(self, key: str):
        file, path = self.origin
        raise ConfigError(f"{file}: key '{path}{key}' is missing; run `make reproduce` again")


def _wrap(value: object, file: Path | str, path: str) -> object:
    if isinstance(value, dict):
        return Values(value, file, f"{path}.")
    if isinstance(value, list):
        return [_wrap(item, file, f"{path}[{i}]") for i, item in enumerate(value)]
    return value


def read_metrics(path: Path) -> Values:
    """A metrics file; :class:`ConfigError` when it is missing or not JSON."""
    try:
        return Values(json.loads(path.read_text()), path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such metrics file; run `make reproduce`") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None


def _of_the(released: str, metrics: Path, name: str, key: str = "checkpoint_sha256") -> Values | None:
    """A metrics file that rests on the weights of ``baseline.json`` or ``exits.json``; None where there is none."""
    files = metrics / f"{released}.json", metrics / f"{name}.json"
    if not all(file.exists() for file in files):
        return None
    weights, found = map(read_metrics, files)
    return found if found.get(key) == weights["checkpoint_sha256"] else None


def paying(alternatives: Values) -> list[dict]:
    """Each system with exits beside the static ``peers`` and ``all`` of them.

    Of each a ``verdict`` in words, and the points ``above`` with the number of ``seeds`` that are above at the
    same budget, the first among them.

    Args:
        alternatives: of ``compress.json``.
    """
    rows = []
    for one in alternatives["with_exits"]:
        seeds = [trained["points"] for trained in of_every_seed(alternatives, one["name"]).values()]
        row: dict = {"name": one["name"], "seeds": len(seeds)}
        for hull in ("peers", "all"):
            key = f"minus_{hull}"
            above = clear(one["points"], key)[0]
            budgets = [{b for p in clear(points, key)[0] for b in p["budgets"]} for points in seeds]
            again = [sum(not found.isdisjoint(p["budgets"]) for found in budgets) for p in above]
            row[hull] = {
                "verdict": verdict(one["points"], key),
                "above": [dict(p) | {"seeds": count} for p, count in zip(above, again, strict=True)],
            }
        rows.append(row)
    return rows


def seeds_beside_goals(training: Values) -> list[dict]:
    """The last trainings with several seeds beside the goals: of each exit the share of AP that each seed keeps.

    Args:
        training: of ``training.json``.

    Returns:
        ``exit``, ``of`` (what it is a share of), ``shares`` in the order of the seeds and ``goal``; no
        rows where one seed was trained.
    """
    rows = [row for row in training["seeds"] if row["training"] != "baseline"]
    if len({row["training"] for row in rows}) < 2:
        return []
    table = []
    for name, goal in load_goals()["exits"].items():
        shares = [row[f"share_of_{goal['of']}"] for row in rows if row["exit"] == name]
        table.append({"exit": name, "of": goal["of"], "shares": shares, "goal": goal["AP_share"]})
    return table


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _gate(value: float, least: float) -> str:
    """``met`` or by how much it was missed."""
    return "met" if value >= least else f"missed by {tables.rounded(least - value)}"


def _at_most(value: float, most: float) -> str:
    return "met" if value <= most else f"missed by {tables.rounded(value - most)}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _share_gate(share: float, least: float) -> str:
    return "met" if share >= least else f"missed by {100 * (least - share):.1f} points"


def _seeds(count: int, of: int) -> str:
    """How many seeds, as words that follow the number."""
    if count == of:
        return "in the one seed that was run" if of == 1 else f"in all {of} seeds"
    return f"in none of {of} seeds" if count == 0 else f"in {count} of {of} seeds"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def causal_means(causal: Values) -> pd.DataFrame:
    """Means over seeds of each variant of the causal ladder, a row a variant."""
    frame = ladder_table(causal["runs"]).drop(columns="seed")
    means = frame.groupby("variant", sort=False).mean().reset_index()
    shares = [{name: row[f"{name} %"] / 100 for name in EXIT_NAMES} for _, row in means.iterrows()]
    means.insert(1, "outcome", [comparison.outcome(s) for s in shares])
    return means


def context(metrics: Path, published: Path) -> dict:
    """Everything that a template may name.

    Args:
        metrics: folder of the metrics files.
        published: folder of the runs by epoch.
    """
    entries = {}
    if (metrics / "phases.json").exists():
        comparison.load_entries(metrics / "phases.json")
        entries = {e["phase"]: e for e in read_metrics(metrics / "phases.json")["phases"]}
    told, final, rules = record.narrative(), record.final_values(), record.phase_rules()
    nine = {phase: entry for phase, entry in entries.items() if phase in final.index}
    causal, ablation = (_of_the("baseline", metrics, name) for name in ("causal", "ablation"))
    routing, guarantee, seen = (_of_the("exits", metrics, name) for name in ("routing", "guarantee", "predictability"))
    training = _of_the("exits", metrics, "training")
    alternatives = _of_the("exits", metrics, "compress", "exits_sha256")
    built = comparison.all_tables(entries, comparison.read_history(published, "1.9"))
    constant, goals = record.constant_against_threshold(rules, 0.46), load_goals()
    return {
        "entries": entries,
        "nine": nine,
        "agreeing": [p for p, e in nine.items() if e["agree"] == e["seeds"]],
        "holding": [p for p, e in nine.items() if e["mechanism_holds"] == e["seeds"]],
        "best_phase_ap": max((e["runs"][0]["AP"] for e in nine.values()), default=None),
        "told": told["phases"],
        "claims": tables.markdown(pd.DataFrame(told["claims"])),
        "slips": tables.markdown(pd.DataFrame(told["slips"])),
        "final": {phase: row.to_dict() for phase, row in final.iterrows()},
        "outcomes": {
            phase: comparison.outcome({n: row[f"val_fraction_{n}"] for n in EXIT_NAMES})
            for phase, row in final.iterrows()
        },
        "ranges": {phase: record.attainable_range(rule) for phase, rule in rules.items()},
        "tables": {name: tables.markdown(frame) for name, frame in built.items()},
        "constant": constant,
        "constant_agrees": int(constant["agrees"].sum()),
        "constant_differs": constant["phase"][~constant["agrees"]].tolist(),
        "weights": record.recovered_weights(final.drop(index="1.9")),
        "weight_full_1_9": float(record.recovered_full_weight(final)["1.9"]),
        "fixed_point": record.soft_fixed_point(),
        "gate_factor": float(record.gate_factor(0)),
        "floor": record.column_pair_floor(6),
        "causal": causal,
        "causal_table": None if causal is None else tables.markdown(causal_means(causal)),
        "causal_rows": None if causal is None else causal_means(causal).to_dict("records"),
        "ablation": ablation,
        "ablation_table": None if ablation is None else tables.markdown(ablation_table(ablation["variants"])),
        "routing": routing,
        "guarantee": guarantee,
        "seen": seen,
        "repeated": training and seeds_beside_goals(training),
        "paying": alternatives and paying(alternatives),
        "detector_record": tables.markdown(pd.read_csv(record.FOLDER / "detector_1_4.csv")),
        "exit_goals": {name: goal for name, goal in goals["exits"].items() if "time" in goal},
        "full_goal": goals["exits"]["full"]["AP_share"],
        "routing_goals": goals["routing"],
        "exit_names": EXIT_NAMES,
    }  # fmt: skip


def environment() -> jinja2.Environment:
    """Templates with strict names; a filter formats, a function judges."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    env.filters |= {"num": tables.rounded, "pct": _per_cent, "signed": _signed, "shares": comparison.shares_text}
    env.globals |= {
        "gate": _gate,
        "share_gate": _share_gate,
        "at_most": _at_most,
        "seeds": _seeds,
        "plural": _plural,
        "decision": decision,
        "outcome": comparison.outcome,
    }
    return env


def render(name: str, metrics: Path | str, published: Path | str) -> str:
    """Text of one report.

    Raises:
        ConfigError: a metrics file, or a key of one, is missing.
    """
    files = {file.removesuffix(".json"): read_metrics(Path(metrics) / file) for file in REPORTS[name]}
    values = context(Path(metrics), Path(published)) | {key: v for key, v in files.items() if key != "phases"}
    try:
        return environment().get_template(f"{name}.j2").render(values)
    except jinja2.UndefinedError as error:
        raise ConfigError(f"{TEMPLATES / name}.j2: {error.message}") from None


def write_all(reports: Path | str = ROOT / "reports") -> list[Path]:
    """Write the four reports from ``metrics`` and ``phases`` under ``reports``."""
    folder = Path(reports)
    texts = {name: render(name, folder / "metrics", folder / "phases") for name in REPORTS}
    return [write_atomic(folder / name, lambda file, t=text: file.write(t.encode())) for name, text in texts.items()]
