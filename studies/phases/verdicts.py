"""The runs of all phases beside the record: joined, judged, and read in words.

``reports/metrics/phases/phase_1_4_seed0.json`` is what one run measured, below ``serious/`` one with more images; the
curves by epoch are in ``reports/phases``. ``reports/metrics/phases.json`` joins and judges them (:func:`join_runs`), so
that a check that is sharpened needs no training.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from eelib.config import ConfigError, resolve
from eelib.files import read_json, write_atomic, write_json
from studies.phases import mechanisms
from studies.phases.analysis import trajectory
from studies.phases.config import EXIT_NAMES, PhaseConfig, load, profile_changes
from studies.phases.scorecard import recorded_card
from studies.phases.trained import metrics_files, read_history, tag

# Keys of phases.json, for its readers.
ABOUT = {
    "phases": "one entry a phase: recorded, runs (one a seed) and serious (more images, or null: not trained)",
    "agree": "runs whose exit shares are all within five points of the record",
    "mechanism_holds": "runs in which every number of every check lies in its predicted interval",
    "clamped": "the serious run of 1.7 with its temperatures held in [0.5, 3], where there is one",
    "recorded": "final row of the record: val shares, train confidences, temperatures, losses, ms a batch of four",
    "runs.exit_shares": "share of the test images at each exit, decided as the phase decides",
    "runs.confidence_mean, confidence_std, probability_mean": "over all test images at every exit, routed there or not",
    "runs.boxes_above_cut": "of an image's 2,400, a mean over all test images; absent in runs from before 2026-11-27",
    "runs.trained_on": "the GPU that trained it, and its version of torch; absent where a processor did",
    "runs.temperature, loss, train_rates": "last training epoch",
    "runs.thresholds": "in force at the end",
    "runs.time": "routed_call_ms as the phase times it; four_images_ms, one_image_ms warmed up; runs side by side",
    "runs.mechanisms": "predictions from the switches: prediction, predicted intervals, measured, holds",
    "runs.start_sha256": "of the trunk's checkpoint; seeds with another one than seed 0 were run before it changed",
    "runs.difference": "null, or which of our numbers are not the recorded ones, and why",
    "runs.unmet": "null, or which predictions do not hold",
}


def judge(config: PhaseConfig, summary: dict, history: list[dict]) -> dict:
    """What is to be said of a run, of :func:`studies.phases.scorecard.summarise`, by its switches and epochs:
    ``agrees``, ``mechanisms``, ``mechanism_holds``, ``difference`` and ``unmet``."""
    checks = mechanisms.check_mechanisms(config, summary, history)
    return {
        "agrees": mechanisms.agrees(summary, summary["recorded"]),
        "mechanisms": checks,
        "mechanism_holds": all(check["holds"] for check in checks) if checks else None,
        "difference": mechanisms.explain_difference(config, summary, summary["recorded"]),
        "unmet": mechanisms.explain_unmet(checks),
    }


def run_name(config: PhaseConfig, profile: str = "") -> str:
    """Name of a run below the folders of metrics and curves: ``serious/phase_1_4_seed0``."""
    return str(Path(profile) / f"phase_{tag(config.phase)}_seed{config.seed}")


def publish_run(config: PhaseConfig, summary: dict, out: Path | str, reports: Path | str, profile: str = "") -> None:
    """Put a run into a folder of reports: what it measured, without times if it is of a profile, and its curves.

    The curves by epoch keep the record's file names; the plots of a run can be drawn from them.
    """
    name = run_name(config, profile)
    kept = {key: value for key, value in summary.items() if not (profile and key == "time")}
    write_json(Path(reports) / "metrics" / "phases" / f"{name}.json", kept)
    for file_name in metrics_files(config.phase):
        content = (Path(out) / file_name).read_bytes()
        write_atomic(Path(reports) / "phases" / name / file_name, lambda file, content=content: file.write(content))


def read_run(reports: Path | str, name: str) -> dict:
    """A published run of a :func:`run_name`, judged by the present checks and the switches in the parameter file."""
    summary = read_json(Path(reports) / "metrics" / "phases" / f"{name}.json")
    phase, profile = summary["phase"], str(Path(name).parent).removeprefix(".")
    changes = profile_changes(f"phase_{tag(phase)}", profile) | {"seed": summary["seed"]}
    config = load(resolve("params") / f"phase_{tag(phase)}.yaml", changes)
    history = read_history(Path(reports) / "phases" / name, phase).reset_index().to_dict("records")
    return summary | judge(config, summary, history)


def join_runs(reports: Path | str) -> dict:
    """``phases.json`` from the runs in a folder of reports.

    Raises:
        ValueError: no run, or runs that were measured on different test data.
    """
    folder = Path(reports) / "metrics" / "phases"
    names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("**/phase_1_*_seed*.json"))
    rows = {name: read_run(reports, name) for name in names}
    plain = [name for name in names if "/" not in name]
    if not plain:
        raise ValueError(f"{folder}: no run of a recorded phase found; expected phase_1_N_seedS.json files")
    first = rows[plain[0]]
    for name, row in rows.items():
        if row["split_sha256"] != first["split_sha256"]:
            raise ValueError(f"{folder / name}.json: measured on another 'test' than {plain[0]}; run it again")
    phases, shared = [], {"phase", "recorded", "split", "split_sha256"}
    kept = {name: {key: value for key, value in row.items() if key not in shared} for name, row in rows.items()}
    for phase in dict.fromkeys(rows[name]["phase"] for name in plain):
        runs = [rows[name] for name in plain if rows[name]["phase"] == phase]
        entry = {
            "phase": phase,
            "recorded": runs[0]["recorded"],
            "agree": sum(run["agrees"] for run in runs) if runs[0]["recorded"] else None,
            "mechanism_holds": sum(bool(run["mechanism_holds"]) for run in runs),
            "seeds": len(runs),
            "runs": [kept[name] for name in plain if rows[name]["phase"] == phase],
        }
        for run in entry["runs"][1:]:
            del run["config"]  # the seed aside, it is the first run's
        others = [name for name in names if "/" in name and rows[name]["phase"] == phase]
        phases.append(entry | {"serious": None} | {name.split("/")[0]: kept[name] for name in others})
    return {"about": ABOUT, **{key: first[key] for key in ("split", "split_sha256")}, "phases": phases}


def recorded_quantities(phase: str) -> dict[str, float]:
    """What the record says of the quantities that checks measure, by the checks' names."""
    card = recorded_card(phase)
    if not card:
        return {}
    kinds = {"share": "exit_shares", "confidence": "confidence", "temperature": "temperature"}
    kinds |= {"threshold": "thresholds", "soft_rate": "soft_rates", "hard_rate": "hard_rates", "loss": "loss"}
    found = {f"{kind}_{name}": value for kind, key in kinds.items() for name, value in card[key].items()}
    found["least_share_exit1"] = card["exit_shares"]["exit1"]
    try:
        path = trajectory(phase)
    except ConfigError:  # none is held
        path = {}
    for name in EXIT_NAMES[:2]:
        found[f"confidence_minus_threshold_{name}"] = found[f"confidence_{name}"] - found[f"threshold_{name}"]
        if f"confidence_{name}" in path and (path[f"confidence_{name}"] == 0).any():
            first = int((path[f"confidence_{name}"] == 0).idxmax())
            found[f"shut_from_epoch_{name}"] = first
            found[f"epochs_open_afterwards_{name}"] = int((path.loc[first:, f"confidence_{name}"] != 0).sum())
    return found


def check_table(phases: Sequence[dict]) -> pd.DataFrame:
    """Every number that a check predicts, of entries of ``phases.json``: its interval, what runs and record gave.

    Intervals that depend on a run are those of the first seed; verdicts are by each run's own.
    """
    columns = ("phase", "quantity", "predicted", "measured", "holds", "serious", "serious holds", "recorded")
    lines = []
    for entry in phases:
        runs, old = entry["runs"], recorded_quantities(entry["phase"])
        for index, check in enumerate(runs[0]["mechanisms"]):
            seeds = [run["mechanisms"][index] for run in runs]
            serious = entry["serious"] and entry["serious"]["mechanisms"][index]
            for key in check["predicted"]:
                lines.append((
                    entry["phase"], mechanisms.quantity(key), mechanisms.wanted(check, key),
                    ", ".join(mechanisms.said(seed, key) for seed in seeds),
                    f"{sum(mechanisms.inside(seed, key) for seed in seeds)} of {len(seeds)}",
                    mechanisms.said(serious, key) if serious else "not trained",
                    ("yes" if mechanisms.inside(serious, key) else "no") if serious else "",
                    f"{old[key]:.4g}" if key in old else "",
                ))  # fmt: skip
    return pd.DataFrame(lines, columns=columns)  # no line where the switches predict nothing


def shares_text(shares: Mapping[str, float] | None) -> str | None:
    """Per cent at exit1 / exit2 / full; None for none."""
    return None if shares is None else " / ".join(f"{100 * shares[name]:.0f}" for name in EXIT_NAMES)


def score_table(phases: Sequence[dict]) -> pd.DataFrame:
    """A line an entry of ``phases.json``: exit shares on record, of the short and the serious run, and verdicts."""
    lines = []
    for entry in phases:
        run, serious = entry["runs"][0], entry["serious"]
        lines.append({
            "phase": entry["phase"],
            "recorded exits": shares_text(entry["recorded"]["exit_shares"]),
            "short exits": shares_text(run["exit_shares"]),
            "agrees": f"{entry['agree']} of {entry['seeds']}",
            "holds": f"{entry['mechanism_holds']} of {entry['seeds']}",
            "serious steps": f"{serious['steps']:,}" if serious else "not trained",
            "serious exits": shares_text(serious["exit_shares"]) if serious else "",
            "serious holds": ("yes" if serious["mechanism_holds"] else "no") if serious else "",
            "AP short": run["AP"],
            "AP serious": serious["AP"] if serious else None,
        })  # fmt: skip
    return pd.DataFrame(lines)


def reading(run: dict) -> str:
    """One judged run in three sentences."""
    ours, old = shares_text(run["exit_shares"]), run["recorded"].get("exit_shares")
    beside = f", on record {shares_text(old)}: the shares {'agree' if run['agrees'] else 'differ'}" if old else ""
    held, of = sum(check["holds"] for check in run["mechanisms"]), len(run["mechanisms"])
    return (
        f"Of {run['images']} images of test {ours} % leave at exit1 / exit2 / full{beside}. {held} of {of} predictions "
        f"hold in every number. AP is {run['AP']:.3f} and AP50 {run['AP50']:.3f}: {run['decision']}."
    )


def holds(entry: Mapping) -> bool:
    """Whether every number that the switches predict came out: in the serious run, or else with every seed."""
    if entry.get("serious"):
        return all(check["holds"] for check in entry["serious"]["mechanisms"])
    return entry["mechanism_holds"] == entry["seeds"]


def listed(words: Iterable[str]) -> str:
    """Words as a list in a sentence."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def headline(phases: Sequence[dict]) -> str:
    """In which phases the recorded shares and every predicted number come out, short and long trainings apart.

    Two sentences, without a stop at the end, of at least one entry of ``phases.json``.
    """
    agreeing = [entry for entry in phases if entry["agree"] == entry["seeds"]]
    longer = {entry["phase"]: entry["serious"] for entry in phases if entry.get("serious")}
    failing = [entry["phase"] for entry in phases if not holds(entry)]
    text = f"After {phases[0]['runs'][0]['steps']:,} steps the switches give the recorded exit shares in "
    text += f"{len(agreeing)} of {len(phases)} phases with every seed"
    if longer:
        steps = [f"{run['steps']:,}" for run in sorted(longer.values(), key=lambda run: run["steps"])]
        differing = [phase for phase, run in longer.items() if not run["agrees"]]
        text += f"; after {' to '.join(dict.fromkeys((steps[0], steps[-1])))} steps, with one seed, in "
        text += f"{len(longer) - len(differing)} of {len(longer)}" + f" (not in {listed(differing)})" * bool(differing)
    judged = ", each judged by its longest training" if longer else " with every seed"
    text += f". Every number that they predict besides comes out in {len(phases) - len(failing)} phases{judged}"
    return text + f"; not all do in {listed(failing)}" * bool(failing)


def recommendations(phases: Sequence[dict], progressive: float | None) -> str:
    """What the record recommends for 1.7, judged: the clamp of its temperature, and thresholds that rise.

    Args:
        progressive: share that a rising threshold recovers on a working detector, of ``routing.json``, if measured.
    """
    lines = []
    for entry in phases:
        if clamped := entry.get("clamped"):  # of 1.7 alone
            free = entry["serious"] or entry["runs"][0]
            ends = [f"{run['temperature']['exit1']:.2f} after {run['steps']:,} steps" for run in (clamped, free)]
            lines.append(
                f"Clamped, 1.7 ends with T1 at {ends[0]} (without: {ends[1]}) and sends "
                f"{shares_text(clamped['exit_shares'])} % to exit1 / exit2 / full."
            )
    lines.append(
        "The clamp bounds a temperature and changes no route: 1.7's rule cannot give less than 0.5 at any temperature, "
        "and no threshold exceeds 0.44. The rising schedule decides nothing there either, for the same reason."
    )
    for entry in phases:
        rule = load(resolve("params") / f"phase_{tag(entry['phase'])}.yaml").thresholds
        c = [run["confidence_mean"]["exit1"] for run in entry["runs"]]
        last = entry["runs"][0]["thresholds"]["exit1"]
        if rule.kind == "schedule" and rule.exit1 <= min(c) and max(c) < last:
            lines.append(
                f"In the short runs of {entry['phase']} the schedule alone decides: exit1's confidence of {min(c):.2f} "
                f"to {max(c):.2f} is above its first threshold, {rule.exit1:.2f}, and below its last, {last:.2f}."
            )
    if progressive is not None:
        lines.append(
            f"On a detector that works it recovers {progressive:.2f} of what lies between a random routing and an "
            f"oracle (05d_policies): {'worse' if progressive < 0 else 'better'} than chance."
        )
    return " ".join(lines)


def card_table(summary: dict) -> pd.DataFrame:
    """One run of :func:`studies.phases.scorecard.summarise`: recorded value beside ours, a line a quantity."""
    old, lines = summary["recorded"], []
    pairs = {key: key for key in ("exit_shares", "confidence_std", "temperature", "thresholds", "loss")}
    for key, ours in ({"exit_shares": "exit_shares", "confidence": "confidence_mean"} | pairs).items():
        for name, value in summary[ours].items():
            lines.append((f"{key} {name}", old.get(key, {}).get("total" if name == "loss" else name), value))
    for kind in ("soft", "hard"):
        for name, value in old.get(f"{kind}_rates", {}).items():
            lines.append((f"{kind} rate {name}", value, summary["train_rates"].get(f"{kind}_{name}")))
    lines.append(("AP", None, summary["AP"]))
    return pd.DataFrame(lines, columns=["quantity", "recorded", "ours"]).astype({"recorded": object, "ours": object})
