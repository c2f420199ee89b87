"""The ablation: its parameters, its jobs, its summary by hand."""

import numpy as np
import pytest

from eelib.config import ROOT, ConfigError, read_yaml
from studies.phases import ablation, figures
from studies.phases.ablation import ladder
from studies.phases.config import load

STUDY = read_yaml(ROOT / "params" / "ablation.yaml")
BASE = ROOT / STUDY["base"]


def flat(config):
    groups = config.model_dump(mode="json")
    return {f"{g}.{k}": v for g, values in groups.items() if isinstance(values, dict) for k, v in values.items()}


def test_each_variant_differs_from_the_working_configuration_in_the_keys_that_it_names():
    runs = ladder(BASE, STUDY["variants"], STUDY["common"], [0])
    working = flat(runs[0][1])
    for (name, config), variant in zip(runs[1:], STUDY["variants"][1:], strict=True):
        changed = {key for key, value in flat(config).items() if value != working[key]}
        assert changed == set(variant["set"]), name
    assert len({name for name, _ in runs}) == len(runs)


def test_the_working_configuration_is_the_last_rung_of_the_ladder():
    causal = read_yaml(ROOT / "params" / "causal.yaml")
    assert flat(ladder(ROOT / causal["base"], causal["variants"], {}, [0])[-1][1]) == flat(load(BASE))


def test_what_routing_reads_costs_no_training():
    jobs = ablation.jobs_of(BASE, STUDY["variants"], STUDY["common"], STUDY["seeds"])
    names = [[name for name, _ in job] for job in jobs]
    shared = next(job for job in names if job[0] == "working")
    assert "decision of four images (17)" in shared and "mean probability (33)" in shared
    assert all(len(job) == 1 for job in names if job[0] != "working")
    assert not any("Gumbel" in name or "temperature" in name for name in shared)  # these train otherwise
    for seed, job in zip(STUDY["seeds"], jobs, strict=False):
        assert {config.seed for _, config in job} == {seed}
    with pytest.raises(ConfigError, match="the first is the working configuration; expected an empty 'set'"):
        ablation.jobs_of(BASE, STUDY["variants"][1:], {}, [0])


def made(variant, seed, ap, share=0.5, spread=0.1, noise=0.0):
    rng = np.random.default_rng(seed)
    draws = (ap + noise * rng.standard_normal(50)).tolist()
    samples = {"AP": draws, "AP_full": draws, "largest_share": [share] * 50, "spread": [spread] * 50}
    samples |= {"AP_exit1": [0.0] * 50, "AP_exit2": [0.0] * 50}
    samples |= {f"{kind}_exit{k}": [0.1] * 50 for kind in ("share", "spread") for k in (1, 2)}
    samples |= {"share_full": [0.0] * 50, "spread_full": [0.1] * 50}
    return {
        "variant": variant, "seed": seed, "AP_exits": {"exit1": 0, "exit2": 0, "full": ap}, "AP": ap,
        "exit_shares": {"exit1": share, "exit2": 1 - share, "full": 0.0},
        "confidence_std": {"exit1": spread, "exit2": 0.1, "full": 0.1},
        "samples": samples,
    }  # fmt: skip


def test_summary_by_hand():
    runs = [made("working", 0, 0.2), made("working", 1, 0.4)]
    runs += [made("blind", 0, 0.0), made("blind", 1, 0.01), made("stuck", 0, 0.1, 1.0), made("stuck", 1, 0.3, 0.96)]
    working, blind, stuck = ablation.summarise(runs)
    assert working["AP_full"] == pytest.approx(0.3) and working["AP_full_interval"] == pytest.approx([0.2, 0.4])
    assert working["AP_full_minus_working_interval"] == [0, 0]
    # paired: with either seed "stuck" is 0.1 below, so the difference has no spread though the APs have
    assert stuck["AP_full_minus_working"] == pytest.approx(-0.1)
    assert stuck["AP_full_minus_working_interval"] == pytest.approx([-0.1, -0.1])
    assert [row["destroys_detection"] for row in (working, blind, stuck)] == [False, True, False]
    assert [row["all_or_nothing"] for row in (working, blind, stuck)] == [False, False, True]
    assert ablation.answer([working, blind, stuck]).splitlines() == [
        "Alone destroys detection: blind.",
        "Alone makes the routing all or nothing: stuck.",
    ]
    table = ablation.ablation_table([working, blind, stuck])
    assert table["destroys detection"].tolist() == ["", "yes", ""] and table["seeds"].tolist() == [2, 2, 2]
    left, middle, _ = figures.ablation_dots([working, blind, stuck]).axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["working", "blind", "stuck"]
    assert middle.get_xlim()[1] > 1


def test_the_sentences_say_what_the_rows_say():
    runs = [made("working", 0, 0.2), made("class layout (1)", 0, 0.0, 1.0), made("single map (11)", 0, 0.3)]
    rows = ablation.summarise([*runs, made("boxes in pixels (6)", 0, 0.0, 1.0)])
    assert ablation.improves(rows) == "Alone improves full's AP: single map (11) by 0.100 (0.100 to 0.100)."
    assert ablation.improves(rows[:2]) == "Alone improves full's AP: none."
    ladder_rows = ablation.summarise(
        [made("as recorded", 0, 0.0, 1.0), made("layout", 0, 0.0, 1.0), made("all", 0, 0.2)]
    )
    assert ablation.repairs(ladder_rows) == (
        "95 % of the images take one exit with every seed, of 1: as recorded, layout. They divide: all. "
        "Full detects: all."
    )
    text = ablation.headline(ladder_rows, rows)
    assert "alone is sufficient" in text and "repairing it alone is not enough (largest share 1.00)" in text
    assert text.endswith("too: boxes in pixels (6).")
    free = ablation.summarise([made("as recorded", 0, 0.0, 1.0), made("layout", 0, 0.0)])
    assert "repairing it alone is enough" in ablation.headline(free, rows)


def test_a_stopped_study_goes_on(tmp_path, monkeypatch):
    trained = []

    def train(config, out, **_):
        trained.append(config.phase)
        return {"detector": object()}

    monkeypatch.setattr(ablation, "train_phase", train)
    measured = {key: value for key, value in made("", 0, 0.1).items() if key != "variant"}
    monkeypatch.setattr(ablation, "measure", lambda *_: measured)
    monkeypatch.setattr(ablation, "provenance", lambda *_: {"split": "test"})
    monkeypatch.setattr(ablation, "identity", lambda config: {"config": config.model_dump(mode="json")})
    (job, *_) = ablation.jobs_of(BASE, STUDY["variants"], STUDY["common"], [0])
    ablation.run_job(job[:2], tmp_path, 50, log=lambda _: None)
    rows = ablation.run_job(job[:3], tmp_path, 50, log=lambda _: None)
    assert trained == ["causal_0", "causal_0"]  # once for the first two, once more for the third
    again = ablation.run_job(job[:3], tmp_path, 50, log=lambda _: None)
    assert len(trained) == 2 and again == rows and [r["variant"] for r in rows] == [n for n, _ in job[:3]]
    ablation.run_job(job[:1], tmp_path, 60, log=lambda _: None)
    assert len(trained) == 3  # other resamples are another measurement
