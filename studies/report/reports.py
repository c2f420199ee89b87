"""The four written reports, filled from measured results: ``eelib study report``.

A template holds sentences; numbers come from ``reports/metrics`` and ``data/record``, and a
sentence that judges an outcome is chosen by a number. A key that a template asks for and a
metrics file lacks is an error that names both.
"""

from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd

from eelib.config import ROOT, ConfigError, load_config
from eelib.files import write_atomic
from studies import tables
from studies.goals import decision, load_goals
from studies.metrics import Values, load_entries, read_metrics
from studies.phases import analysis as record
from studies.phases.config import EXIT_NAMES
from studies.phases.verdicts import headline, holds, listed, shares_text
from studies.report import comparison, facts
from studies.routing.claims import processors_read
from studies.routing.study import same_but_for_the_processor
from studies.routing.worth import check_goals, other_seeds, seeds_table

TEMPLATES = Path(__file__).parent / "templates"
# Routers of 05f_blank, as a sentence calls them.
ROUTERS = {
    "best score": "leaving where the best score is high", "no chair": "leaving where no chair is seen",
    "benefit": "leaving where a regressor expects little of full", "gates and benefit": "the gates with that regressor",
    "gates alone": "the gates alone", "best score ends": "ending images by exit1's best score",
}  # fmt: skip


def _of_weights(metrics: Path, name: str, sha256: str | None) -> Values | None:
    """A metrics file that rests on weights of a hash; None where there is none."""
    path = metrics / f"{name}.json"
    study = read_metrics(path) if path.exists() and sha256 else None
    return study if study and study.get("checkpoint_sha256") == sha256 else None


def _weights_of(metrics: Path) -> dict[str, str | None]:
    """Hashes of the released detectors, as their metrics name them, and of what the recorded phases start from."""
    hashes = {name: read_metrics(metrics / f"{name}.json").get("checkpoint_sha256") for name in ("baseline", "exits")}
    runs = [run for entry in load_entries(metrics / "phases.json").values() for run in entry["runs"]]
    return hashes | {"phases": runs[0].get("start_sha256") if runs else None}


def routers_by_seed(metrics: Path, blank: Mapping, plane: Mapping) -> pd.DataFrame:
    """At how many times each router lies above its coin and all static detectors, seeds side by side."""
    return seeds_table({0: blank["worth"]} | other_seeds(metrics.parent, plane, blank["checkpoint_sha256"]))


def routers_above(routers: pd.DataFrame) -> str:
    """The routers that lie above all static detectors at some time with every seed, in a sentence that counts them."""
    above = [column for column in routers if column.endswith("above all static detectors")]
    seeds, hull = ", counted for each seed," if len(above) > 1 else "", "the hull of all static detectors"
    parts = [
        f"{ROUTERS[row['router']]} lies above {hull} at {listed(row[above])} times that were tried{seeds} where "
        f"{row['empty images']} of the images are empty"
        for _, row in routers[~routers[above].isna().any(axis=1)].iterrows()
        if not any(count.startswith("0 ") for count in row[above])
    ]
    every = " with every seed" if len(above) > 1 else ""
    text = f"{listed(parts)}; no other router does{every}" if parts else f"no router lies above {hull}{every}"
    return text[0].upper() + text[1:]


def _gate(value: float, least: float) -> str:
    """``met`` or by how much it was missed."""
    return "met" if value >= least else f"missed by {least - value:.2g}"


def _seeds(count: int, of: int) -> str:
    """How many seeds, as words that follow the number."""
    if count == of:
        return "in the one seed that was run" if of == 1 else f"in all {of} seeds"
    return f"in none of {of} seeds" if count == 0 else f"in {count} of {of} seeds"


def _phases(metrics: Path) -> dict:
    """Our runs of the nine phases: entries by phase, and which agree and hold."""
    final = record.final_values()
    nine = {phase: entry for phase, entry in load_entries(metrics / "phases.json").items() if phase in final.index}
    return {
        "nine": nine,
        "agreeing": [
            phase
            for phase, entry in nine.items()
            if entry["agree"] == entry["seeds"] and (not entry.get("serious") or entry["serious"]["agrees"])
        ],
        "holding": [phase for phase, entry in nine.items() if holds(entry)],
        "reproduced": nine and headline(list(nine.values())),
        "longer": any(entry.get("serious") for entry in nine.values()),
        "stories": record.narrative()["phases"],
    }


def _record() -> dict:
    """The record's own numbers: final rows and outcomes by phase, what the rules can give, one constant in all."""
    final, rules = record.final_values(), record.phase_rules()
    constant = record.constant_against_threshold(rules, 0.46)
    return {
        "final": {phase: row.to_dict() for phase, row in final.iterrows()},
        "outcomes": {
            phase: comparison.outcome({n: row[f"val_fraction_{n}"] for n in EXIT_NAMES})
            for phase, row in final.iterrows()
        },
        "ranges": {phase: (rule.infimum, 1.0) for phase, rule in rules.items()},
        "constant": constant,
        "constant_agrees": int(constant["agrees"].sum()),
        "constant_differs": constant["phase"][~constant["agrees"]].tolist(),
    }


def _measured(metrics: Path) -> dict:
    """Studies of the present weights, None where there is none of them, and the goals."""
    weights = _weights_of(metrics)
    causal = _of_weights(metrics, "causal", weights["phases"])
    plane = _of_weights(metrics, "plane", weights["baseline"])
    studies = {"routing": "routing", "guarantee": "guarantee", "foreseen": "predictability", "blank": "blank"}
    blank, guarantee = (_of_weights(metrics, name, weights["exits"]) for name in ("blank", "guarantee"))
    guarantees = _of_weights(metrics, "guarantees", weights["exits"]) if guarantee else None
    routing, older = (_of_weights(metrics, name, weights["exits"]) for name in ("routing", "routing_older"))
    older = same_but_for_the_processor(older, routing or {})
    recovered = {name: policy["recovered"] for name, policy in routing["policies"].items()} if routing else {}
    return {
        **{name: _of_weights(metrics, file, weights["exits"]) for name, file in studies.items()},
        "ladder": facts.ladder(causal),
        "defects": facts.defects(_of_weights(metrics, "ablation", weights["phases"])),
        "processors": processors_read(recovered, older) if recovered else [],
        "plane": facts.paying(plane) if plane else None,
        "epochs": {
            name: load_config(ROOT / "params" / f"{name}.yaml").optim.epochs for name in ("baseline", "exits_320")
        },
        "int8": facts.int8_elsewhere(metrics),
        "kept": facts.kept_of_baseline(plane),
        "exit_rows": facts.exits_beside_goals(plane),
        "certified": facts.certified(guarantees, guarantee["stated"]["epsilon"] if guarantee else 0.0),
        "routers": routers_by_seed(metrics, blank, plane) if blank and plane else None,
        "blank_goals": check_goals(blank).replace({"met": {True: "yes", False: "no"}}) if blank else None,
        "routing_goals": load_goals()["routing"],
    }


# Columns of two tables of the narrative.
CLAIMS = {"topic": "subject", "says": "the phase comparison says", "shows": "the record shows"}
SLIPS = {"number": "number in the list of defects", "what": "slip", "effect": "effect"}


def context(metrics: Path, published: Path) -> dict:
    """Everything that a template may name, from the folders of the metrics files and of the runs by epoch.

    Raises:
        ConfigError: a metrics file, or a key of one, is missing.
    """
    phases, final, narrative = _phases(metrics), record.final_values(), record.narrative()
    nine = phases["nine"]
    files = {name: read_metrics(metrics / f"{name}.json") for name in ("baseline", "exits", "phases", "detector_1_4")}
    values = files | phases | _record() | _measured(metrics)
    return values | {
        "tables": comparison.all_tables(nine, comparison.read_history(published, "1.9")),
        "best_phase_ap": max((comparison.reported(entry)["AP"] for entry in nine.values()), default=None),
        "claims": pd.DataFrame(narrative["claims"])[[*CLAIMS]].rename(columns=CLAIMS),
        "slips": pd.DataFrame(narrative["slips"])[[*SLIPS]].rename(columns=SLIPS),
        "architecture": narrative["architecture"],
        "weights": record.recovered_weights(final.drop(index="1.9")),
        "weight_full_1_9": float(record.recovered_full_weight(final)["1.9"]),
        "floor": record.column_pair_floor(6),
        "counts": facts.counts(metrics.parent),
        "exit_names": EXIT_NAMES,
        "detector_record": pd.read_csv(record.FOLDER / "detector_1_4.csv"),
    }


REPORTS = (
    "PHASE_COMPARISON_TABLE.md", "EXECUTIVE_SUMMARY.md", "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md",
    "INFERENCE_ISSUES_PHASE1_4.md",
)  # fmt: skip


SENTENCES = {  # of :func:`studies.report.comparison.outcome`
    "all at exit1": "Practically all images leave at exit1.", "all at exit2": "Practically all images leave at exit2.",
    "none early": "Practically all images reach full.", "mixed": "Images leave at several exits.",
}  # fmt: skip


def environment() -> jinja2.Environment:
    """Templates with strict names; a filter formats, a function judges."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, TEMPLATES.parent]), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    env.filters |= {"num": tables.rounded, "shares": shares_text, "listed": listed}
    env.filters["pct"] = lambda share: f"{100 * share:.0f} %"
    env.filters["defect"] = lambda name: facts.DEFECTS.get(name, name)
    env.filters["repair"] = lambda name: facts.REPAIRS.get(name, name)
    env.filters["above"] = routers_above
    env.filters["sentence"] = lambda outcome: SENTENCES[outcome]
    env.filters["signed"] = lambda share: f"{100 * share:+.1f} %"
    env.filters["table"] = lambda rows: tables.markdown(pd.DataFrame(rows))
    env.globals |= {"gate": _gate, "at_most": lambda value, most: _gate(-value, -most)}
    env.globals |= {"seeds": _seeds, "plural": lambda count, one, many: f"{count} {one if count == 1 else many}"}
    env.globals |= {"decision": decision, "outcome": comparison.outcome, "reported": comparison.reported}
    env.globals["checks"] = facts.check_lines
    return env


def render(name: str, values: Mapping) -> str:
    """Text of one report from a :func:`context`.

    Raises:
        ConfigError: a key of a metrics file is missing.
    """
    try:
        return environment().get_template(f"{name}.j2").render(values)
    except jinja2.UndefinedError as error:
        raise ConfigError(f"{TEMPLATES / name}.j2: {error.message}") from None


def write_all(reports: Path | str) -> list[Path]:
    """Write the four reports from ``metrics`` and ``phases`` under ``reports``."""
    folder = Path(reports)
    values = context(folder / "metrics", folder / "phases")
    texts = {name: render(name, values) for name in REPORTS}
    return [write_atomic(folder / name, lambda file, t=text: file.write(t.encode())) for name, text in texts.items()]
