"""The ten exact checks of the record (section B.11), and the functions that they rest on."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from eelib.config import ROOT, ConfigError
from studies.phases import analysis as record
from studies.phases.config import EXIT_NAMES, LossConfig, load
from studies.phases.detector import RecordedDetector
from studies.phases.loss import distribution_loss

FINAL = record.final_values()
RULES = record.phase_rules()


def test_1_loss_identity_of_every_final_row():
    assert record.loss_identity(FINAL).abs().max() < 1e-4
    assert record.recovered_weights(FINAL.drop(index="1.9")) == pytest.approx(record.LOSS_WEIGHTS, abs=5e-6)
    full = record.recovered_full_weight(FINAL)
    assert full["1.9"] == pytest.approx(0.5, abs=1e-6)
    assert full.drop(["1.1", "1.9"]).to_numpy() == pytest.approx(0.3, abs=1e-6)  # 1.1's full loss is 4e-9


def test_1_untrained_exits_of_1_9_carry_no_loss():
    warm_up = record.trajectory("1.9").loc[1:3]
    assert (warm_up["loss_total"] - 0.5 * warm_up["loss_full"]).abs().max() < 0.1  # both to one decimal
    later = record.trajectory("1.9").loc[7:]
    total = 0.3 * later["loss_exit1"] + 0.4 * later["loss_exit2"] + 0.5 * later["loss_full"]
    assert (later["loss_total"] - total).abs().max() < 0.15


def test_2_exit_rate_of_1_7_follows_the_logistic():
    rows = record.trajectory("1.7")
    rate = record.sampled_exit_rate(rows["confidence_exit1"], rows["threshold_exit1"])
    assert rate[-1] == pytest.approx(0.7687, abs=1e-4)
    assert abs(rows["rate_exit1"].iloc[-1] - rate[-1]) < 2 * math.sqrt(0.7687 * 0.2313 / record.TRAIN_IMAGES)
    assert (rows["rate_exit1"] - rate).abs().max() < 0.011  # the mean of a logistic is not the logistic of a mean
    floor = record.sampled_exit_rate(0.5, rows["threshold_exit1"])
    assert (rate >= floor).all() and floor.min() > record.RATE_TARGETS[0]


def test_3_fixed_point_of_1_6():
    gap1, gap2 = record.soft_fixed_point()
    assert (gap1, gap2) == (pytest.approx(math.log(3 / 7) / 10), pytest.approx(-0.05878, abs=1e-5))
    last = FINAL.loc["1.6"]
    assert last["train_confidence_exit1"] - last["exit1_threshold_epoch20"] == pytest.approx(gap1, abs=4e-4)
    assert last["train_confidence_exit2"] - last["exit2_threshold_epoch20"] == pytest.approx(gap2, abs=4e-4)
    assert expit(10 * gap1) == pytest.approx(0.30)
    assert (1 - 0.30) * expit(10 * gap2) == pytest.approx(0.25)


def test_4_distribution_loss_when_nobody_leaves():
    assert distribution_loss((0, 0), LossConfig()) == pytest.approx(0.1525)
    for phase in ("1.5", "1.8", "1.9"):
        assert FINAL.loc[phase, "loss_exit_distribution"] == pytest.approx(0.1525, abs=1e-6)
    rows = record.trajectory("1.7")
    # the loss is a mean over batches and hard samples vary within a batch, so it lies above the mean rate's
    of_the_mean = distribution_loss((rows["rate_exit1"], rows["rate_exit2"]), LossConfig())
    assert (rows["loss_distribution"] - of_the_mean > -1e-3).all()


def test_5_gate_factor_of_1_9():
    assert record.gate_factor(0) == pytest.approx(0.0179862, abs=1e-7)
    assert FINAL.loc["1.9", "train_confidence_exit1"] / record.gate_factor(0) == pytest.approx(0.4450, abs=1e-4)


def test_6_two_rules_cannot_fall_below_their_threshold():
    """1.2 and 1.7 let every image leave whatever the weights; 1.4 does not have to."""
    tautologies = {p for p, r in RULES.items() if r.infimum >= threshold_at_the_end(p) - 1e-6}
    assert "1.2" in tautologies
    assert RULES["1.2"].infimum == pytest.approx(0.35)
    assert "1.4" not in tautologies


def threshold_at_the_end(phase: str) -> float:
    if phase in FINAL.index:
        return FINAL.loc[phase, "exit1_threshold_epoch20"]
    return record.other_runs()["threshold_exit1"].iloc[0]


def test_7_warm_up_temperatures_are_weight_decay():
    assert record.decayed_temperature(1.5, 3) == pytest.approx([1.4953, 1.4860, 1.4769], abs=5e-5)
    assert record.trajectory("1.9")["temperature_exit1"][:3].to_numpy() == pytest.approx(
        record.decayed_temperature(1.5, 3), abs=1e-4
    )


def test_8_thresholds_of_1_5_are_the_float32_of_their_start():
    for name, start in (("exit1", 0.55), ("exit2", 0.65)):
        assert np.float32(FINAL.loc["1.5", f"{name}_threshold_epoch20"]) == np.float32(start)


def detector(recomputed: bool) -> RecordedDetector:
    config = load(ROOT / "params" / "phase_1_2.yaml")
    model = config.model.model_copy(update={"context_recomputed": recomputed})
    torch.manual_seed(0)
    return RecordedDetector(config.model_copy(update={"model": model}))


def test_9_architecture_of_the_record():
    table = record.architecture_table(detector(recomputed=False)).set_index("exit")
    assert table["trunk parameters"].to_list() == [93_200, 406_368, 869_096]
    assert table["branch parameters"].to_list() == [59_428, 164_900, 1_032_228]
    assert table["million multiply-adds"].to_list() == pytest.approx([190, 328, 840], abs=1)
    assert table["receptive field, px"].to_list() == [179, 307, 371]
    recomputed = record.architecture_table(detector(recomputed=True))
    assert recomputed["million multiply-adds"].iloc[-1] == pytest.approx(910, abs=1)


def test_9_exit1_cannot_tell_four_of_ten_column_pairs_apart():
    """On a constant image only the zero padding tells columns apart, and exit1 does not see that far."""
    model = detector(recomputed=False).double().train()  # batch statistics keep the deep signal alive
    with torch.no_grad():
        maps = model(torch.full((2, 3, 320, 320), 0.4, dtype=torch.float64))
    assert [indistinguishable_pairs(m.cls[0]) for m in maps] == [4, 0, 0]
    floor = record.column_pair_floor(reach_columns=6)
    assert floor == pytest.approx(0.4 * math.log(2))
    early = record.trajectory("1.1")["loss_exit1"].loc[1:2]
    assert (early > floor).all() and (early < 1.15 * floor).all()


def indistinguishable_pairs(cls_map: torch.Tensor) -> int:
    """Column pairs of a map (B, C, H, W) that are equal in every channel at the middle row."""
    row = cls_map[0, :, cls_map.shape[2] // 2]  # (C, W)
    pairs = row.reshape(len(row), -1, 2)  # (C, W / 2, 2)
    return int(((pairs[..., 0] - pairs[..., 1]).abs().amax(0) <= 1e-12 * row.abs().max()).sum())


def test_10_rates_are_multiples_of_the_counts():
    validation = FINAL[[f"val_fraction_{name}" for name in EXIT_NAMES]]
    assert is_multiple(validation, 1 / record.VAL_BATCHES, 1e-9)
    for phase, columns in (("1.6", ["val_fraction_exit2"]), ("1.8", ["val_fraction_exit1", "val_fraction_exit2"])):
        assert is_multiple(record.trajectory(phase)[columns], 1 / record.VAL_BATCHES, 5e-5)
    for phase in ("1.7", "1.8", "1.9"):
        assert is_multiple(record.trajectory(phase)[["rate_exit1", "rate_exit2"]], 1 / record.TRAIN_IMAGES, 1e-9)
    assert (FINAL[[f"val_batches_{name}" for name in EXIT_NAMES]].sum(axis=1) == record.VAL_BATCHES).all()


def is_multiple(values: pd.DataFrame, unit: float, tolerance: float) -> bool:
    return bool(((values / unit).round() * unit - values).abs().max().max() <= tolerance)


def test_a_constant_predicts_the_recorded_exit():
    table = record.constant_against_threshold(RULES, 0.46).set_index("phase")
    assert set(table.index[~table["agrees"]]) <= {"1.6"}  # it moved its own threshold, and its constant with it


def test_implied_probability_inverts_the_rule():
    for phase, rule in RULES.items():
        if phase in FINAL.index:
            c = FINAL.loc[phase, "train_confidence_exit1"]
            for p in record.implied_probability(c, rule):
                assert record.uniform_confidence([p], rule)[0] == pytest.approx(c, abs=2e-4)
    assert record.implied_probability(0.4755, RULES["1.4"]) == pytest.approx([0.459], abs=1e-3)


def test_sampling_band_is_two_standard_errors():
    low, high = record.sampling_band(np.array([0.5, 0.0]), 100)
    assert (low[0], high[0]) == (pytest.approx(0.402), pytest.approx(0.598))
    assert (low[1], high[1]) == (0, 0)


def test_a_trajectory_that_is_not_held_is_named():
    with pytest.raises(ConfigError, match="epochs_1_2.csv: no trajectory of phase '1.2' is held; expected one of 1.1"):
        record.trajectory("1.2")


def test_narrative_covers_every_phase():
    assert list(record.narrative()["phases"]) == list(FINAL.index)
