"""Each switch alone changes what it names and nothing else; a switch that cannot act is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, smooth_l1_loss

from eelib.config import ROOT, ConfigError, override
from eelib.fit import learning_rate_factor
from studies.phases.confidence import confidence, count_gate
from studies.phases.config import EXIT_NAMES, ConfidenceConfig, load, parse
from studies.phases.detector import ExitMaps, RecordedExits
from studies.phases.loss import (
    class_rows,
    distribution_loss,
    early_weight,
    exit_rates,
    exit_weights,
    recorded_loss,
    scheduled_thresholds,
    slope_at,
)
from studies.phases.trainer import parameter_groups

PHASES = {path.stem: load(path) for path in sorted((ROOT / "params").glob("phase_1_*.yaml"))}
BASE = PHASES["phase_1_4"]


def changed(config, **keys):
    """A configuration with dotted keys (two underscores for the dot) replaced."""
    return parse(override(config.model_dump(mode="json"), {k.replace("__", "."): v for k, v in keys.items()}))


def outputs(seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    maps = [[0.5 * torch.randn(2, n, 4, 4, generator=generator) for n in (12, 24)] for _ in range(3)]
    return [ExitMaps(n, *([m.requires_grad_(grad)] for m in pair)) for n, pair in zip(EXIT_NAMES, maps, strict=True)]


TARGETS = [
    {"boxes": torch.tensor([[40.0, 40, 120, 160]])},
    {"boxes": torch.tensor([[10.0, 10, 60, 60], [5, 5, 300, 300]])},
]


def parts(config, epoch=10.0, maps=None):
    thresholds = [torch.tensor(config.thresholds.exit1), torch.tensor(config.thresholds.exit2)]
    temperatures = [torch.tensor(t) for t in config.temperature.start]
    maps = maps or outputs()
    return recorded_loss(maps, TARGETS, temperatures, thresholds, config, epoch, torch.Generator().manual_seed(3))[1]


DETECTION = {"loss", "loss_exit1", "loss_exit2", "loss_full", "loss_cascade"}
ROUTING = {f"{kind}_{name}" for name in EXIT_NAMES for kind in ("confidence", "confidence_std")}
RATES = {f"{kind}_{n}" for n in ("exit1", "exit2") for kind in ("rate", "rate_hard", "rate_soft", "logistic")}


@pytest.mark.parametrize(
    ("key", "value", "may_change"),
    [
        ("targets.assignment", "iou", DETECTION),
        ("targets.class_layout", "permuted", DETECTION),
        ("targets.class_index", "cell_major", {"loss", "loss_exit1", "loss_exit2", "loss_full"}),
        ("targets.boxes", "encoded", {"loss", "loss_exit1", "loss_exit2", "loss_full"}),
        ("loss.exit_weights", [0.3, 0.4, 0.4], {"loss"}),
        ("loss.classification", "hard_negative", {"loss", "loss_exit1", "loss_exit2", "loss_full"}),
        ("loss.classification", "quality_focal", {"loss", "loss_exit1", "loss_exit2", "loss_full"}),
        ("loss.box", "giou", {"loss", "loss_exit1", "loss_exit2", "loss_full"}),
        ("loss.teacher", 0.0, {"loss", "loss_exit1", "loss_exit2"}),
        ("loss.cascade", 0.0, {"loss"}),
        ("loss.full_weight_floor", 0.5, {"loss"}),
        ("loss.early_weight_by_epoch", [0.0], {"loss"}),
        ("loss.exit_targets", [0.5, 0.5], {"loss_distribution"}),
        ("confidence.cut", 0.5, ROUTING | RATES | {"loss", "loss_order", "loss_distribution"}),
        ("thresholds.exit1", 0.9, RATES | {"threshold_exit1", "loss_distribution"}),
    ],
)
def test_a_switch_changes_what_it_names(key, value, may_change):
    before, after = parts(BASE), parts(changed(BASE, **{key.replace(".", "__"): value}))
    different = {name for name in before if not math.isclose(before[name], after[name], rel_tol=1e-5, abs_tol=1e-7)}
    assert different
    assert different <= may_change


def test_boxes_without_ground_truth():
    """4 and 5, the record, B.1: full goes to background and to a tenth of zero boxes, exit1 follows exit2 alone."""
    maps = outputs()
    values = parts(PHASES["phase_1_1"], maps=maps)
    rows = class_rows(maps[2].cls, "column_pairs", "channel_major").flatten(0, 1)
    background = cross_entropy(rows, torch.zeros(len(rows), dtype=torch.long))
    expected = background + 0.1 * smooth_l1_loss(maps[2].box[0], torch.zeros_like(maps[2].box[0]))
    assert values["loss_full"] == pytest.approx(float(expected), rel=1e-5)
    same = parts(PHASES["phase_1_1"], maps=[maps[1], maps[1], maps[2]])
    assert same["loss_exit1"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("layout", ["permuted", "column_pairs"])
@pytest.mark.parametrize("index", ["cell_major", "channel_major"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (2, 6)])
def test_class_rows_hold_every_logit_once(layout, index, grid):
    cls = torch.arange(2 * 12 * grid[0] * grid[1]).float().view(2, 12, *grid)
    rows = class_rows([cls], layout, index)
    assert rows.shape == (2, grid[0] * grid[1] * 6, 2)
    assert torch.equal(rows[0].flatten().sort().values, cls[0].flatten())


def test_the_index_switch_moves_rows_and_keeps_their_pairs():
    """Defect 2 alone: with channel pairs, the class of index i is at another cell than the box of index i."""
    cls = torch.arange(12 * 16).float().view(1, 12, 4, 4)
    cell, channel = (class_rows([cls], "permuted", i)[0] for i in ("cell_major", "channel_major"))
    assert cell[1].tolist() == [32, 48]  # second box of cell 0
    assert channel[1].tolist() == [1, 17]  # first box of cell 1
    assert {tuple(r) for r in cell.tolist()} == {tuple(r) for r in channel.tolist()}
    # column pairs in cell-major order lie at one of the two cells that they cover
    rows = class_rows([cls], "column_pairs", "cell_major")[0].view(16, 6, 2) % 16
    assert all(float(i) in rows[i, k].tolist() for i in range(16) for k in range(6))


RULES = [(name, c.confidence) for name, c in PHASES.items()]
RULES += [(gate, ConfidenceConfig(rule="gated_mean", gate=gate)) for gate in ("none", "soft_count")]
RULES += [
    ("top", ConfidenceConfig()),
    ("wide", ConfidenceConfig(rule="counted", cut=0.8, penalty_few=0.9, min_count=3)),
]


@pytest.mark.parametrize("rule", [r for _, r in RULES], ids=[n for n, _ in RULES])
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_no_rule_falls_below_its_infimum(rule, values):
    c = float(confidence(torch.tensor([values]), rule))
    assert rule.infimum - 1e-5 <= c <= 1 + 1e-5


@pytest.mark.parametrize("rule", [r for _, r in RULES], ids=[n for n, _ in RULES])
def test_the_infimum_is_reached(rule):
    """Uniform fields and fields with a few boxes just above the cut come within 1e-3 of it."""
    few = torch.full((4, 500), rule.cut)
    for n in range(4):
        few[n, :n] = rule.cut + 1e-4
    fields = torch.cat((torch.linspace(0, 1, 401)[:, None].expand(-1, 500), few))
    assert abs(float(confidence(fields, rule).min()) - rule.infimum) < 4e-3


def test_infima_of_the_record():
    """Check 6 of B.11."""
    expected = {"phase_1_1_max": 0.5, "phase_1_2": 0.35, "phase_1_7": 0.5}
    assert {k: PHASES[k].confidence.infimum for k in expected} == pytest.approx(expected)
    assert [k for k, c in PHASES.items() if c.thresholds.tautology == "allowed"] == list(expected)


def test_a_tautology_is_refused():
    with pytest.raises(
        ConfigError, match="'thresholds.exit1' is 0.35, but the rule 'counted' cannot give less than 0.35"
    ):
        changed(PHASES["phase_1_2"], thresholds__tautology="refused")


def test_gates():
    """The record, B.8 and B.9: factors of 1.9 at counts 0 to 4, and the indicator of 1.8."""
    p = torch.full((5, 100), 0.2)
    for n in range(5):
        p[n, :n] = 0.9
    factors = count_gate(p, PHASES["phase_1_9"].confidence).tolist()
    assert factors == pytest.approx([0.0179862, 0.1192029, 0.5, 0.8807971, 0.9820138], abs=1e-6)
    assert count_gate(p, PHASES["phase_1_8"].confidence).tolist() == [0, 0, 0, 1, 1]


def gradient_of_gate(gate):
    logits = torch.zeros(1, 50, requires_grad=True)
    rule = ConfidenceConfig(rule="gated_mean", cut=0.7, min_count=2, gate=gate)
    return torch.autograd.grad(confidence(logits.sigmoid(), rule).sum(), logits)[0].abs().sum()


def test_only_the_soft_count_passes_a_gradient_through_the_gate():
    open_ = gradient_of_gate("none")
    assert gradient_of_gate("hard_count") == 0  # shut: the confidence's own gradient is gone too (defect 30)
    assert gradient_of_gate("sigmoid_of_count") == pytest.approx(float(open_) * 0.0179862, rel=1e-4)  # defect 31
    assert gradient_of_gate("soft_count") > open_


@pytest.mark.parametrize(("kind", "reaches"), [("hard", False), ("soft", True), ("gumbel", True)])
def test_gradient_to_the_thresholds(kind, reaches):
    """1.5 has none, not even zero; 1.6 has one (defect 23)."""
    thresholds = [torch.tensor(0.5, requires_grad=True), torch.tensor(0.6, requires_grad=True)]
    rates = exit_rates(torch.full((4,), 0.45), torch.full((4,), 0.5), thresholds, kind)
    loss = distribution_loss(rates, BASE.loss)
    assert loss.requires_grad == reaches
    if reaches:
        loss.backward()
    assert [t.grad is not None for t in thresholds] == [reaches, reaches]


def test_soft_rates_of_phase_1_6_at_its_fixed_point():
    """Check 3 of B.11: soft rates 0.30 and 0.25 while all images are below their thresholds."""
    c1, c2 = torch.full((8,), 0.4 - 0.0847298), torch.full((8,), 0.7 - 0.0587787)
    soft = exit_rates(c1, c2, (0.4, 0.7), "soft")
    assert [float(r) for r in soft] == pytest.approx([0.30, 0.25], abs=1e-5)
    assert [float(r) for r in exit_rates(c1, c2, (0.4, 0.7), "hard")] == [0, 0]


def test_distribution_loss_without_exits():
    """Check 4 of B.11."""
    assert float(distribution_loss([torch.tensor(0.0)] * 2, BASE.loss)) == pytest.approx(0.1525)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_gumbel_rate_is_the_logistic_at_any_temperature(temperature):
    """Check 2 of B.11: P(exit) = sigmoid(20 (c - threshold)); 1.7 ends at 0.7687."""
    c = torch.full((40_000,), 0.50004)
    options = {"temperature": temperature, "generator": torch.Generator().manual_seed(0)}
    rate, _ = exit_rates(c, c, (0.44, 0.5875), "gumbel", **options)
    assert float(rate) == pytest.approx(1 / (1 + math.exp(-20 * 0.06004)), abs=0.008)


def test_detached_rates_move_thresholds_alone():
    """Defect 25."""
    config = PHASES["phase_1_6"]
    for detached in (False, True):
        temperatures = [torch.tensor(1.5, requires_grad=True) for _ in range(3)]
        thresholds = [torch.tensor(0.45, requires_grad=True), torch.tensor(0.6, requires_grad=True)]
        case = changed(config, loss__rates_detached=detached, loss__confidence_order=0.0)
        total, _ = recorded_loss(outputs(), TARGETS, temperatures, thresholds, case, 10.0, torch.Generator())
        total.backward()
        assert all(t.grad is not None for t in thresholds)
        assert [t.grad is None for t in temperatures[:2]] == [detached, detached]


def test_slope_annealing():
    """Defect 24."""
    assert [slope_at(PHASES["phase_1_6"].loss, e, 20) for e in (0, 19)] == [10, 10]
    annealed = changed(PHASES["phase_1_6"], loss__exit_slope=[10.0, 100.0])
    assert [slope_at(annealed.loss, e, 20) for e in (0, 9.5, 19)] == [10, 55, 100]


@pytest.mark.parametrize(
    ("phase", "missed", "reached"),
    [("phase_1_7", (0.44, 0.5875), (0.45, 0.60)), ("phase_1_8", (0.6375, 0.7375), (0.65, 0.75)),
     ("phase_1_9", (0.54, 0.64), (0.55, 0.65))],
)  # fmt: skip
def test_schedule_ends(phase, missed, reached):
    """Defect 37."""
    rule = PHASES[phase].thresholds
    assert scheduled_thresholds(rule, 19, 20) == pytest.approx(missed)
    assert scheduled_thresholds(rule.model_copy(update={"schedule_end": "reached"}), 19, 20) == pytest.approx(reached)
    assert scheduled_thresholds(rule, 0, 20) == (rule.exit1, rule.exit2)
    assert scheduled_thresholds(BASE.thresholds, 19, 20) == (0.45, 0.60)


def test_temperature_clamps():
    """27: none. 28: forward, no gradient outside and the parameter free. Right: the parameter."""
    for clamp, applied, gradient, kept in (("none", 5, 1, 5), ("forward", 3, 0, 5), ("parameter", 5, 1, 3)):
        rule = BASE.temperature.model_copy(update={"start": (5.0, 1.0, 1.0), "clamp": clamp, "bounds": (0.5, 3.0)})
        heads = RecordedExits(BASE.model, rule, BASE.thresholds)
        value = heads.applied_temperatures()[0]
        assert float(value.detach()) == applied
        assert float(torch.autograd.grad(value, heads.temperatures["exit1"])[0]) == gradient
        heads.project()
        assert float(heads.temperatures["exit1"].detach()) == kept


def test_threshold_bounds():
    """Defect 25: 1.6 had a threshold of 1.014."""
    for bounded, kept in ((True, 1.0), (False, pytest.approx(1.014))):
        rule = BASE.thresholds.model_copy(update={"exit1": 1.014, "bounded": bounded})
        heads = RecordedExits(BASE.model, BASE.temperature, rule)
        heads.project()
        assert float(heads.thresholds["exit1"].detach()) == kept


@pytest.mark.parametrize("detached", [False, True])
def test_detached_contexts_keep_the_full_loss_from_the_early_branches(detached):
    """Defect 16."""
    model = BASE.model.model_copy(update={"context_detached": detached})
    heads = RecordedExits(model, BASE.temperature, BASE.thresholds)
    full = heads([[torch.randn(2, c, 4, 4)] for c in (80, 112, 672)])[-1]
    full.cls[0].sum().backward()
    reached = [any(p.grad is not None for p in heads.branches[n].parameters()) for n in ("exit1", "exit2")]
    assert reached == [not detached, not detached]


def test_warm_up_weights_of_phase_1_9():
    """35 and 36, the record, B.9: w = 0 for three epochs, 1 from the seventh; full never below 0.5."""
    config = PHASES["phase_1_9"]
    assert [early_weight(config, e) for e in (0, 2.9, 3, 4, 5, 6, 19)] == [0, 0, 0.2, 0.4667, 0.7333, 1, 1]
    assert exit_weights(config, 0) == (0, 0, 0.5)
    assert exit_weights(config, 19) == pytest.approx((0.3, 0.4, 0.5))
    assert parts(config, 1.0)["loss"] == pytest.approx(0.5 * parts(config, 1.0)["loss_full"])  # check 1 of B.11
    assert early_weight(BASE, 0) == 1


def test_an_order_that_holds_leaves_the_temperatures_without_gradient():
    """38, the record, A.2: T stays where no loss reaches it, for AdamW skips a gradient of None."""
    for rising in (True, False):
        levels = (0.0, 0.5, 1.0) if rising else (1.0, 0.5, 0.0)
        maps = outputs()
        for level, output in zip(levels, maps, strict=True):
            output.cls[0].view(2, 6, 2, 4, 4)[:, :, 1] += 3 * level
        temperatures = [torch.tensor(1.5, requires_grad=True) for _ in range(3)]
        config = changed(BASE, confidence={"rule": "gated_mean"})
        total, values = recorded_loss(maps, TARGETS, temperatures, (0.4, 0.5), config, 10.0, torch.Generator())
        if rising:
            assert values["loss_order"] == 0 and not total.requires_grad
            continue
        total.backward()
        assert values["loss_order"] > 0
        assert all(t.grad is not None for t in temperatures)


def test_weight_decay_of_the_warm_up_temperatures():
    """Check 7 of B.11: epoch means 1.4953, 1.4860, 1.4769 from a gradient of zero (defect 29)."""
    config = PHASES["phase_1_9"]
    heads = RecordedExits(config.model, config.temperature, config.thresholds)
    groups = [g for g in parameter_groups(heads, config) if g["lr"] == config.temperature.lr]
    groups = [{**g, "params": [heads.temperatures["exit1"]]} for g in groups[:1]]
    assert groups[0]["weight_decay"] == 5.0e-4
    optimizer, means = torch.optim.AdamW(groups), []
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(epoch * 1250, 25_000, 0, 0.0)
        total = 0.0
        for _ in range(1250):
            heads.temperatures["exit1"].grad = torch.zeros(())
            total += float(heads.temperatures["exit1"].detach())
            optimizer.step()
        means.append(total / 1250)
    assert means == pytest.approx([1.4953, 1.4860, 1.4769], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"confidence": {"gate": "hard_count"}}, "'confidence.gate' is 'hard_count' but cannot act: .*'gated_mean'"),
        ({"thresholds": {"schedule_end": "missed"}}, "needs 'thresholds.kind' to be 'schedule', not 'fixed'"),
        ({"loss": {"exit_distribution": 0.1}}, "'loss.exit_distribution' cannot act"),
        ({"targets": {"boxes": "zero_or_teacher"}, "loss": {"box": "smooth_l1"}}, "'loss.box' is 'smooth_l1'"),
        ({"loss": {"ramp_epochs": 2}}, "'loss.ramp_epochs' cannot act"),
        ({"confidence": {"gaet": "none"}}, "unknown key 'confidence.gaet'; did you mean 'gate'"),
    ],
)
def test_a_switch_that_cannot_act_is_refused(values, message):
    base = {"phase": "t", "data": {"augment": "flip"}}
    with pytest.raises(ConfigError, match=message):
        parse(base | values)
