import pytest
import torch

from eelib.checkpoints import load_released
from eelib.deploy.runtime import Session
from eelib.model import EarlyExitSSDLite
from eelib.timing import exit_times, machine, measure, part_of, run_to


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return EarlyExitSSDLite().eval()


def test_calls_are_interleaved_and_warmed_up():
    order = []
    times = measure({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert times.keys() == {"a", "b"}
    assert all(0 <= t["median_ms"] <= t["p95_ms"] for t in times.values())


def test_an_exit_is_timed_without_what_follows_it(model):
    ran = []
    handle = model.backbone.extra.register_forward_hook(lambda *_: ran.append("tail"))
    handle2 = model.backbone.features[1].register_forward_hook(lambda *_: ran.append("tail"))
    run_to(model, torch.rand(1, 3, 320, 320), "exit2")
    assert not ran
    run_to(model, torch.rand(1, 3, 320, 320), "full")
    assert ran
    handle.remove(), handle2.remove()


def test_unknown_exit(model):
    with pytest.raises(ValueError, match="exit: 'exit9' is unknown; expected one of exit1, exit2, full"):
        run_to(model, torch.rand(1, 3, 320, 320), "exit9")


def test_threads_are_restored_and_full_is_the_unit(model, monkeypatch):
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    times = exit_times(model, torch.rand(1, 3, 320, 320), repeats=2)
    assert asked == [1, before]
    assert list(times) == ["exit1", "exit2", "full"]
    assert times["full"]["ratio"] == 1


def test_the_exits_passed_are_not_suppressed(model, monkeypatch):
    suppressed = []
    monkeypatch.setattr(EarlyExitSSDLite, "postprocess", staticmethod(lambda output, _: suppressed.append(output.name)))
    run_to(model, torch.rand(1, 3, 320, 320), "full")
    assert suppressed == ["full"]


def test_the_machine_is_described():
    described = machine()
    assert described.keys() == {"processor", "cores", "system", "threads", "device"}
    assert all(described.values()) and int(described["cores"]) >= 1


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("/trunk/layers/layers.4/block/block.2/Mul_kernel_time", "trunk"),
        ("/trunk/Sub_kernel_time", "trunk"),
        ("/second/second.0/second.0.1/Conv_output_0_nchwc_kernel_time", "trunk"),
        ("/extra.3/extra.3.0/Clip_output_0_nchwc_kernel_time", "trunk"),
        ("next_features_nchwc_kernel_time", "trunk"),
        ("/context/context.1/Clip_output_0_nchwc_kernel_time", "head"),
        ("/down.1/down.1.0/Clip_output_0_nchwc_kernel_time", "head"),
        ("/decoder/predictors.2/class_head/class_head.1/Conv_output_0_nchwc_kernel_time", "head"),
        ("/shared.0/shared.0.0/Conv_kernel_time", "head"),
        ("/decoder/Exp_kernel_time", "decode"),
        ("ReorderOutput_token_154_kernel_time", None),
    ],
)
def test_parts_of_a_profile(operator, part):
    assert part_of(operator) == part


def test_a_session_states_what_suppression_at_the_exits_passed_adds(checkpoint, exported, looks):
    session = Session(exported("gates"))
    times = exit_times(load_released(checkpoint("gates")).eval(), torch.from_numpy(looks[:2]), 2, session)
    assert set(times) == {*session.exits, "blank1", "blank2"}
    assert times["exit1"]["passed_ratio"] == 0 and all(times[name]["passed_ratio"] >= 0 for name in session.exits)
    assert all(time["batch_8_ms"] > 0 and time["ratio"] > 0 for time in times.values())
