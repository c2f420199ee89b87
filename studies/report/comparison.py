"""The eight tables of the phase comparison, the recorded value beside the reproduced one, and what the two say.

Recorded values come from ``data/record``, ours from ``phases.json`` (``entries``, by phase): the run with most images,
or the first seed. A phase that was not run has a dash. Judging words are chosen from the numbers.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from studies.phases import analysis as record
from studies.phases import trained
from studies.phases.config import EXIT_NAMES
from studies.phases.verdicts import shares_text

ALL = 0.95  # share of the images from which an exit counts as the only one
TEMPERATURE_BOUNDS = (0.5, 3.0)  # of 1.8 and 1.9's clamp
WARM_UP_EPOCHS = {"1-3": (1, 3), "4": (4, 4), "5-20": (5, 20)}


def reported(entry: Mapping) -> dict:
    """The run of a phase that tables and reports show: the serious one, with most images, or else the first seed."""
    return entry.get("serious") or entry["runs"][0]


def _phases(entries: Mapping[str, dict]) -> Iterator[tuple[str, pd.Series, dict[str, float], dict, dict | None]]:
    """Of each recorded phase its final row, exit shares and story, and our run of it, if there is one."""
    stories = record.narrative()["phases"]
    for phase, row in record.final_values().iterrows():
        run = reported(entries[phase]) if phase in entries else None
        yield phase, row, _recorded_shares(row), stories[phase], run


def outcome(shares: Mapping[str, float] | None) -> str | None:
    """What became of the images, from their shares."""
    if shares is None:
        return None
    for name, text in (("exit1", "all at exit1"), ("exit2", "all at exit2"), ("full", "none early")):
        if shares[name] >= ALL:
            return text
    return "mixed"


def temperature_state(values: Mapping[str, float]) -> str:
    """Where the three temperatures lie with respect to the later clamp of [0.5, 3]."""
    low, high = TEMPERATURE_BOUNDS
    beyond = [name for name, t in values.items() if t > high * 1.001 or t < low * 0.999]
    bound = [name for name, t in values.items() if min(abs(t - high), abs(t - low)) < 1e-3]
    if beyond:
        return f"{', '.join(beyond)} outside [{low}, {high}]"
    return f"{', '.join(bound)} at a bound" if bound else "inside"


def _recorded_shares(row: pd.Series) -> dict[str, float]:
    return {name: row[f"val_fraction_{name}"] for name in EXIT_NAMES}


def _object(lines: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(lines).astype(object)


def quick_reference(entries: Mapping[str, dict]) -> pd.DataFrame:
    """Goal, thresholds, exits, time and outcome of each phase."""
    lines = []
    for phase, row, old, story, run in _phases(entries):
        new = run and run["exit_shares"]
        lines.append({
            "phase": phase, "goal": story["goal"],
            "thresholds recorded": f"{row['exit1_threshold_epoch20']:.3f}, {row['exit2_threshold_epoch20']:.3f}",
            "thresholds ours": run and ", ".join(f"{v:.3f}" for v in run["thresholds"].values()),
            "exit shares (%) recorded": shares_text(old), "exit shares (%) ours": shares_text(new),
            "ms per batch of 4 recorded": row["latency_ms_per_batch_of_4"],
            "ms per batch of 4 ours": run and entries[phase]["runs"][0]["time"]["four_images_ms"],
            "outcome recorded": outcome(old), "outcome ours": outcome(new),
            "seeds that agree": run and f"{entries[phase]['agree']} of {entries[phase]['seeds']}",
        })  # fmt: skip
    return _object(lines)


def _levels(confidence: float, thresholds: Iterable[float], shares: Mapping[str, float]) -> str:
    first, second = thresholds
    return f"exits {shares_text(shares)}; confidence {confidence:.3f} against {first:.4g} and {second:.4g}"


def said_and_shown(entries: Mapping[str, dict]) -> pd.DataFrame:
    """What the comparison says of each phase, what the record says, what ours gave, and the mechanism in a line."""
    lines = []
    for phase, row, shares, story, run in _phases(entries):
        first, second = row["exit1_threshold_in_seed_table"], row["exit2_threshold_in_seed_table"]
        told = "gates, no thresholds" if pd.isna(first) else f"thresholds {first} and {second}"
        in_force, ms = (row[f"{name}_threshold_epoch20"] for name in EXIT_NAMES[:2]), row["latency_ms_per_batch_of_4"]
        shown = _levels(row["train_confidence_exit1"], in_force, shares)
        ours = run and _levels(run["confidence_mean"]["exit1"], run["thresholds"].values(), run["exit_shares"])
        lines.append({
            "phase": phase,
            "the comparison says": f"{story['status']}; exits {shares_text(shares)}; {told}; {ms:.1f} ms an inference",
            "the record says": f"{shown}; {ms:.1f} ms a batch of four",
            "ours": run and f"{ours}; AP {run['AP']:.3f} after {run['steps']:,} steps",
            "mechanism": story["mechanism"],
        })  # fmt: skip
    return _object(lines)


def _beside(entries: Mapping[str, dict], columns: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    """A line a phase; each column is (title, recorded column, group of the run, key of the group)."""
    lines = []
    for phase, row, _, _, run in _phases(entries):
        line = {"phase": phase}
        for title, recorded, group, key in columns:
            line |= {f"{title} recorded": row[recorded], f"{title} ours": run and run[group].get(key)}
        lines.append(line)
    return _object(lines)


def confidences(entries: Mapping[str, dict]) -> pd.DataFrame:
    """Confidence of each exit; spread of exit1 (recorded: over a training batch, ours: over the test images)."""
    columns = [(name, f"train_confidence_{name}", "confidence_mean", name) for name in EXIT_NAMES]
    return _beside(entries, [*columns, ("spread exit1", "train_confidence_std_exit1", "confidence_std", "exit1")])


def losses(entries: Mapping[str, dict]) -> pd.DataFrame:
    """Total and parts in the last epoch."""
    columns = [(name, f"loss_{name}", "loss", name) for name in (*EXIT_NAMES, "cascade")]
    return _beside(entries, [("total", "loss_total", "loss", "loss"), *columns])


def temperatures(entries: Mapping[str, dict]) -> pd.DataFrame:
    """Temperatures at the end, and where they lie."""
    frame = _beside(entries, [(name, f"temperature_{name}", "temperature", name) for name in EXIT_NAMES])
    for source in ("recorded", "ours"):
        rows = frame[[f"{name} {source}" for name in EXIT_NAMES]].set_axis(EXIT_NAMES, axis=1).iterrows()
        frame[f"state {source}"] = [None if row.isna().any() else temperature_state(row) for _, row in rows]
    return frame


def timeline(entries: Mapping[str, dict]) -> pd.DataFrame:
    """Date, attempt, outcome and the mechanism of each phase."""
    lines = []
    for phase, _, shares, story, run in _phases(entries):
        line = {"phase": phase, "date": story["date"], "attempt": story["attempt"], "recorded outcome": outcome(shares)}
        lines.append(line | {"our outcome": outcome(run and run["exit_shares"]), "mechanism": story["mechanism"]})
    return _object(lines)


def patterns(entries: Mapping[str, dict]) -> pd.DataFrame:
    """Phases by their recorded outcome: what they have in common, and whether their rule could decide at all."""
    final, rules, lines = record.final_values(), record.phase_rules(), []
    outcomes = final.apply(lambda row: outcome(_recorded_shares(row)), axis=1)
    for text, rows in final.groupby(outcomes, sort=False):
        phases, least = list(rows.index), rows["exit1_threshold_epoch20"] - 1e-6
        forced = [p for p in phases if rules[p].infimum >= least[p]]
        runs = [reported(entries[p]) for p in phases if p in entries]
        below = rows["train_confidence_exit1"] - rows["exit1_threshold_epoch20"]
        lines.append({
            "recorded outcome": text, "phases": ", ".join(phases),
            "confidence of exit1": _range(rows["train_confidence_exit1"]), "confidence minus threshold": _range(below),
            "ms per batch of 4": _range(rows["latency_ms_per_batch_of_4"]),
            "phases whose rule forces it": ", ".join(forced) or "none",
            "same outcome in our runs": f"{sum(outcome(r['exit_shares']) == text for r in runs)} of {len(runs)}",
            "best AP in our runs": max((r["AP"] for r in runs), default=None),
        })  # fmt: skip
    return _object(lines)


def problems(entries: Mapping[str, dict]) -> pd.DataFrame:
    """What each phase tried to solve, and what decided it."""
    lines = []
    for phase, _, shares, story, run in _phases(entries):
        line = {"phase": phase, "problem": story["problem"], "attempt": story["attempt"]}
        line |= {"recorded outcome": outcome(shares)}
        holds = run and f"{entries[phase]['mechanism_holds']} of {entries[phase]['seeds']}"
        lines.append(line | {"cause": story["cause"], "seeds in which all predictions hold": holds})
    return _object(lines)


def warm_up(history: pd.DataFrame | None) -> pd.DataFrame:
    """1.9 by epochs, recorded and ours, if there is any: weight of the early losses, confidences, share at exit1, time.

    ``history`` has ``confidence_exit1``, ``confidence_exit2`` and ``val_share_exit1``, and the epoch as its index.
    """
    old, lines = record.trajectory("1.9"), []
    for title, (first, last) in WARM_UP_EPOCHS.items():
        rows = old.loc[first:last]
        ours = None if history is None else history.loc[first:last]
        line = {"epochs": title, "weight of the early exits' losses": _range(rows["warmup_weight"])}
        for name in ("exit1", "exit2"):
            line[f"{name} confidence recorded"] = _range(rows[f"confidence_{name}"])
            line[f"{name} confidence ours"] = None if ours is None else _range(ours[f"confidence_{name}"])
        line["share at exit1 recorded"] = _range(rows["val_fraction_exit1"])
        line["share at exit1 ours"] = None if ours is None else _range(ours["val_share_exit1"])
        line["ms per batch of 4 recorded"] = _range(rows["ms_per_batch_of_4"])
        lines.append(line)
    return _object(lines)


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"


def read_history(folder: Path | str, phase: str) -> pd.DataFrame | None:
    """A published run by epoch, of the first seed, the serious one first; None when there is none."""
    for run in (f"serious/phase_{trained.tag(phase)}_seed0", f"phase_{trained.tag(phase)}_seed0"):
        if all((Path(folder) / run / name).exists() for name in trained.metrics_files(phase)):
            return trained.read_history(Path(folder) / run, phase)
    return None


def all_tables(entries: Mapping[str, dict], history: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The eight tables by file name, and the ninth that puts comparison, record and ours side by side.

    Args:
        entries: of :func:`studies.metrics.load_entries`.
        history: of 1.9, by :func:`read_history`.
    """
    return {
        "phases_quick_reference": quick_reference(entries),
        "phases_confidences": confidences(entries),
        "phases_losses": losses(entries),
        "phases_temperatures": temperatures(entries),
        "phases_timeline": timeline(entries),
        "phases_patterns": patterns(entries),
        "phases_problems": problems(entries),
        "phases_warm_up_1_9": warm_up(history),
        "phases_said_and_shown": said_and_shown(entries),
    }
