"""Which defect does what: a ladder of repairs up from the record, and single defects down from what works.

The ladder (05c_causal) repairs a recorded phase switch by switch. The ablation (05e_ablation) takes one step from
the working configuration in every direction. Runs are saved one by one, so that a study that was stopped goes on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from eelib.coco import open_source
from eelib.config import ConfigError, of_the_run, override, read_yaml, resolve
from eelib.data import split_sha256
from eelib.evaluate import provenance
from eelib.files import read_json, write_json
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from studies.phases.config import EXIT_NAMES, PhaseConfig, parse
from studies.phases.trained import optimiser_steps, route_split, weights_path
from studies.phases.trainer import identity, train_phase

DESTROYED = 0.1  # share of the working AP below which nothing is detected any more
ALL = 0.95  # share of the images from which an exit counts as the only one
DRAWS = 2000  # of seeds and scenes
READ_AFTERWARDS = ("confidence", "thresholds", "routing", "timing")  # groups that no detection loss looks at


def ladder(base: Path | str, variants: Sequence[dict], common: dict, seeds: Sequence[int]) -> list[tuple]:
    """(name, configuration) of every run, in the order of variants, then seeds.

    Args:
        base: parameter file of the phase that is repaired.
        variants: ``name`` and ``set``, dotted keys to values; ``add_to``: an earlier variant whose changes come first.
        common: dotted keys that are set in every variant.

    Raises:
        ConfigError: a variant is not a valid configuration, or builds on one that is not before it.
    """
    values = of_the_run(read_yaml(base))
    changes, result = {}, []
    for index, variant in enumerate(variants):
        name, before = variant["name"], variant.get("add_to")
        if before is not None and before not in changes:
            raise ConfigError(f"variant '{name}': key 'add_to' is '{before}'; expected one of {', '.join(changes)}")
        changes[name] = (changes[before] if before else {}) | variant["set"]
        for seed in seeds:
            keys = common | changes[name] | {"phase": f"causal_{index}", "seed": seed}
            result.append((name, parse(override(values, keys), f"variant '{name}'")))
    return result


def training_key(config: PhaseConfig) -> str:
    """What the weights of a run depend on, as text: runs with the same key are trained alike."""
    values = config.model_dump(mode="json")
    del values["phase"]
    # without a loss on confidences, what routes is read after the training alone
    if not (config.loss.confidence_order or config.loss.exit_distribution or config.temperature.from_routing):
        for group in READ_AFTERWARDS:
            del values[group]
    return json.dumps(values, sort_keys=True)


def jobs_of(base: Path | str, variants: Sequence[dict], common: dict, seeds: Sequence[int]) -> list[list[tuple]]:
    """Runs that share one training, (name, configuration) each; arguments as in :func:`ladder`.

    Raises:
        ConfigError: the first variant, which all others are compared with, changes something,
            or a variant is not a valid configuration.
    """
    if not variants or variants[0]["set"]:
        raise ConfigError("key 'variants': the first is the working configuration; expected an empty 'set'")
    jobs: dict[str, list[tuple]] = {}
    for name, config in ladder(base, variants, common, seeds):
        jobs.setdefault(training_key(config), []).append((name, config))
    return list(jobs.values())


def run_job(
    job: Sequence[tuple[str, PhaseConfig]], runs: Path | str, resamples: int, log: Callable[[str], None] = print
) -> list[dict]:
    """Train once, measure every variant of a job of :func:`jobs_of` on ``test``; what is in ``runs`` is read."""
    _, first = job[0]
    out, detector, rows = Path(runs) / f"{first.phase}_seed{first.seed}", None, []
    for name, config in job:
        path, run_of = out / f"{config.phase}.json", identity(config)
        run_of |= {"resamples": resamples, "test_sha256": split_sha256("test", open_source(config.data))}
        if path.exists() and (row := read_json(path)).get("identity") == run_of:
            rows.append(row | {"variant": name})
            continue
        if detector is None:
            detector = train_phase(first, out, resume=True, log=lambda _: None)["detector"]
        row = {"variant": name, **measure(detector, config, resamples)}
        row |= provenance("test", config, weights_path(out, first.phase)) | {"identity": run_of}
        write_json(path, row)
        rows.append(row)
        log(f"{name}, seed {config.seed}: AP of full {row['AP_exits']['full']:.3f}, exits {row['exit_shares']}")
    return rows


def study(values: Mapping, log: Callable[[str], None] = print) -> dict:
    """A whole ladder or ablation, as far as it is there already not trained again.

    Args:
        values: of its parameter file: ``base``, ``variants``, ``common``, ``seeds``, ``resamples`` and ``runs``.

    Returns:
        ``variants``, rows of :func:`summarise`, and ``runs``, what each variant and seed measured.
    """
    jobs = jobs_of(resolve(values["base"]), values["variants"], values["common"], values["seeds"])
    runs = [row for job in jobs for row in run_job(job, resolve(values["runs"]), values["resamples"], log)]
    order = [variant["name"] for variant in values["variants"]]
    runs.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
    said = ("samples", "identity", "config", "split", "split_sha256", "versions")  # once below, or in the runs' folder
    base = jobs[0][0][1]
    return {
        **{key: values[key] for key in ("base", "common", "resamples")},
        **provenance("test", base, resolve(base.model.start)),
        "variants": summarise(runs),
        "runs": [{key: value for key, value in row.items() if key not in said} for row in runs],
    }


def measure(detector: torch.nn.Module, config: PhaseConfig, resamples: int) -> dict:
    """A variant on ``test``: AP, exit shares, confidences, and the same on bootstrap resamples of the scenes.

    ``samples`` are lists of what :func:`_values` names; the scenes drawn are those of every other variant and seed.
    """
    run = route_split(detector, config, "test")
    chosen, evaluator = run.chosen.numpy(), RoutedAP(run.records, run.coco)
    weights = resample(scenes_of(run.coco, run.records.image_ids), resamples, seed=0)
    weights = weights[(weights @ evaluator.positives) > 0]
    always = [np.full(len(chosen), k) for k in range(len(EXIT_NAMES))]
    ap = bootstrap(evaluator, [*always, chosen], weights)
    taken = np.eye(len(EXIT_NAMES))[chosen]  # (N, E)
    shares = weights @ taken / weights.sum(1, keepdims=True)
    c = run.confidences.double().numpy()
    spreads = [_weighted_std(c[:, k], weights) for k in range(len(EXIT_NAMES))]
    samples = {"AP": ap[:, -1], "largest_share": shares.max(1), "spread": spreads[0]}
    for k, name in enumerate(EXIT_NAMES):
        samples |= {f"AP_{name}": ap[:, k], f"share_{name}": shares[:, k], f"spread_{name}": spreads[k]}
    return {
        "seed": config.seed,
        "images": len(chosen),
        "empty_share": float(np.mean(evaluator.positives == 0)),
        "steps": optimiser_steps(config),
        "AP_exits": {name: evaluator.of_exit(k) for k, name in enumerate(EXIT_NAMES)},
        **evaluator.scores(chosen),
        "exit_shares": dict(zip(EXIT_NAMES, taken.mean(0).tolist(), strict=True)),
        "confidence_mean": dict(zip(EXIT_NAMES, c.mean(0).tolist(), strict=True)),
        "confidence_std": {name: float(c[:, k].std()) for k, name in enumerate(EXIT_NAMES)},
        "samples": {key: values.tolist() for key, values in samples.items()},
    }


def _weighted_std(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spread of ``values`` (N,) under each row of ``weights`` (R, N)."""
    total = weights.sum(1)
    mean = weights @ values / total
    return np.sqrt(np.maximum(weights @ values**2 / total - mean**2, 0))


def summarise(runs: Sequence[dict]) -> list[dict]:
    """A row a variant: means over seeds, intervals over seeds and scenes, what it does to the detector.

    An interval comes from drawing seeds and scenes again, both with replacement and alike for the variant and the
    working configuration. With two or three seeds the spread of the seeds is underestimated.

    Args:
        runs: of :func:`run_job`, the working configuration's first.

    Returns:
        Rows of ``variant``, ``seeds`` (the values of each), for every key of :func:`_values` the mean,
        ``_interval`` and, for APs, ``_minus_working`` with its interval; ``destroys_detection``: the interval of full's
        AP ends below a tenth of the working AP; ``all_or_nothing``: with every seed 95 % of the images take one exit.
    """
    by_variant: dict[str, dict[int, dict]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], {})[run["seed"]] = run
    working = next(iter(by_variant.values()))
    rows = []
    for name, by_seed in by_variant.items():
        # drawn anew alike for every variant, so that variants are paired
        rng, seeds = np.random.default_rng(0), sorted(by_seed)
        size = min(len(by_seed[s]["samples"]["AP"]) for s in seeds)
        picked = rng.integers(0, len(seeds), (DRAWS, len(seeds))), rng.integers(0, size, (DRAWS, 1))
        row = {"variant": name, "seeds": {str(s): _values(by_seed[s]) for s in seeds}}
        for key in row["seeds"][str(seeds[0])]:
            mine, base = (np.array([r[s]["samples"][key] for s in seeds])[picked].mean(1) for r in (by_seed, working))
            row[key] = float(np.mean([value[key] for value in row["seeds"].values()]))
            row[f"{key}_interval"] = interval(mine)
            if key.startswith("AP"):
                row[f"{key}_minus_working"] = row[key] - float(np.mean([_values(working[s])[key] for s in seeds]))
                row[f"{key}_minus_working_interval"] = interval(mine - base)
        limit = DESTROYED * float(np.mean([_values(working[s])["AP_full"] for s in seeds]))
        row["destroys_detection"] = row["AP_full_interval"][1] < limit
        row["all_or_nothing"] = min(value["largest_share"] for value in row["seeds"].values()) >= ALL
        rows.append(row)
    return rows


def _values(run: Mapping) -> dict[str, float]:
    """What one seed measured: the routed AP, the share of the largest exit, the spread of exit1's confidence over
    images (its standard deviation), and ``AP_``, ``share_`` and ``spread_`` of each exit."""
    values = {"AP": run["AP"], "largest_share": max(run["exit_shares"].values())}
    values["spread"] = run["confidence_std"]["exit1"]
    for kind, key in (("AP", "AP_exits"), ("share", "exit_shares"), ("spread", "confidence_std")):
        values |= {f"{kind}_{name}": run[key][name] for name in EXIT_NAMES}
    return values


def answer(rows: Sequence[Mapping]) -> str:
    """The two questions of the ablation in one line each."""
    lost = [row["variant"] for row in rows if row["destroys_detection"]]
    stuck = [row["variant"] for row in rows if row["all_or_nothing"]]
    return (
        f"Alone destroys detection: {'; '.join(lost) or 'none'}.\n"
        f"Alone makes the routing all or nothing: {'; '.join(stuck) or 'none'}."
    )


def improves(rows: Sequence[Mapping]) -> str:
    """Which defects alone make full better, the whole interval of the difference above 0, or that none does."""
    text = "{variant} by {AP_full_minus_working:.3f} ({AP_full_minus_working_interval[0]:.3f} to "
    text += "{AP_full_minus_working_interval[1]:.3f})"
    better = [text.format(**row) for row in rows[1:] if row["AP_full_minus_working_interval"][0] > 0]
    return f"Alone improves full's AP: {'; '.join(better) or 'none'}."


def repairs(rows: Sequence[Mapping]) -> str:
    """What the ladder shows, rung by rung: where it is still all or nothing, and where full detects."""
    stuck = [row["variant"] for row in rows if row["all_or_nothing"]]
    free = [row["variant"] for row in rows if not row["all_or_nothing"]]
    # a hundredth of an AP: what the recorded switches give is below
    detects = [row["variant"] for row in rows if row["AP_full_interval"][0] > 0.01]
    return (
        f"95 % of the images take one exit with every seed, of {len(rows[0]['seeds'])}: {', '.join(stuck) or 'none'}. "
        f"They divide: {', '.join(free) or 'none'}. Full detects: {', '.join(detects) or 'none'}."
    )


def headline(ladder_rows: Sequence[Mapping], ablation_rows: Sequence[Mapping]) -> str:
    """What both studies together support on the layout of the class loss, which the record's routing is blamed on.

    Rows are of :func:`summarise`: the ladder's with a rung ``layout``, the ablation's named after the defects.
    """
    rung = next((row for row in ladder_rows if row["variant"] == "layout"), None)
    alone = [row["variant"] for row in ablation_rows if row["all_or_nothing"]]
    others = [name for name in alone if not name.startswith("class layout")]
    named = "; ".join(others) or "no others"
    first = f"The layout of the class loss alone {'is' if others != alone else 'is not'} sufficient for all or nothing"
    if rung is None:
        return f"{first}; so are, each alone: {named}."
    enough = "is not enough" if rung["all_or_nothing"] else "is enough for images to divide"
    return (
        f"{first}; repairing it alone {enough} (largest share {rung['largest_share']:.2f}). Not necessary either: each "
        f"alone makes the routing all or nothing, too: {named}."
    )


def ablation_table(rows: Sequence[Mapping]) -> pd.DataFrame:
    """One defect at a time, a line a row of :func:`summarise`: what it does to AP and routing, with intervals."""
    lines = []
    for row in rows:
        (low, high), (less, more) = row["AP_full_interval"], row["AP_full_minus_working_interval"]
        lines.append({
            "one defect": row["variant"], "seeds": len(row["seeds"]), "AP full": row["AP_full"], "low": low,
            "high": high, "minus working": row["AP_full_minus_working"], "minus working, low": less,
            "minus working, high": more, "AP routed": row["AP"], "largest share": row["largest_share"],
            "std c1": row["spread"], "destroys detection": "yes" if row["destroys_detection"] else "",
            "all or nothing": "yes" if row["all_or_nothing"] else "",
        })  # fmt: skip
    return pd.DataFrame(lines)


def ladder_means(rows: Sequence[Mapping]) -> pd.DataFrame:
    """The ladder of repairs, a line a row of :func:`summarise`, with 95 % intervals over seeds and scenes."""
    lines = []
    for row in rows:
        line = {"repaired": row["variant"]} | {f"{name} %": f"{100 * row[f'share_{name}']:.0f}" for name in EXIT_NAMES}
        for title, key in (("std c1", "spread_exit1"), ("AP full", "AP_full")):
            low, high = row[f"{key}_interval"]
            line |= {title: f"{row[key]:.3f}", f"{title}, 95 %": f"{low:.3f} to {high:.3f}"}
        lines.append(line)
    return pd.DataFrame(lines)
