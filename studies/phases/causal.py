"""One repair at a time: a ladder of variants of a recorded phase, trained and routed alike."""

from collections.abc import Sequence
from pathlib import Path

from eelib.config import NOTEBOOK_KEYS, ConfigError, PhaseConfig, override, parse, read_yaml, resolve
from studies.phases.scorecard import measure_phase
from studies.phases.trainer import train_phase

KEPT = (
    *("seed", "images", "steps", "exit_shares", "confidence_mean", "confidence_std", "probability_mean", "thresholds"),
    *("AP_exits", "AP", "AP50", "detections_per_image", "split", "split_sha256", "checkpoint_sha256", "versions"),
)


def ladder(base: Path | str, variants: Sequence[dict], common: dict, seeds: Sequence[int]) -> list[tuple]:
    """Configurations of all variants and seeds.

    Args:
        base: parameter file of the phase that is repaired.
        variants: ``name`` and ``set``, dotted keys to values; ``add_to``: name of an earlier
            variant whose changes come first.
        common: dotted keys that are set in every variant.
        seeds: one run each.

    Returns:
        (name, configuration) in the order of variants, then seeds.

    Raises:
        ConfigError: a variant is not a valid configuration, or builds on one that is not before it.
    """
    values = {key: value for key, value in read_yaml(base).items() if key not in NOTEBOOK_KEYS}
    changes: dict[str, dict] = {}
    result = []
    for index, variant in enumerate(variants):
        name, before = variant["name"], variant.get("add_to")
        if before is not None and before not in changes:
            raise ConfigError(f"variant '{name}': key 'add_to' is '{before}'; expected one of {', '.join(changes)}")
        changes[name] = (changes[before] if before else {}) | variant["set"]
        for seed in seeds:
            keys = common | changes[name] | {"phase": f"causal_{index}", "seed": seed}
            result.append((name, parse(override(values, keys), f"variant '{name}'")))
    return result


def run_variant(name: str, config: PhaseConfig) -> dict:
    """Train (or continue) a variant in ``runs/causal`` and measure it on ``test``."""
    out = resolve("runs") / "causal" / f"{config.phase}_seed{config.seed}"
    trained = train_phase(config, out, resume=True, log=lambda _: None)
    run = measure_phase(config, trained["detector"], trained["history"], out)
    return {"variant": name, **{key: run[key] for key in KEPT}, "config": run["config"]}
