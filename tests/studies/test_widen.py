"""Widening: the wide trunk computes what the narrow one did, and goes on to train."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from eelib.checkpoints import TrainingError
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite
from studies.widen import BLOCKS, measure_statistics, read_graph, start_weights, widen

# in, kernel, expanded, out, squeeze and excite, activation, stride: MobileNetV3-Large at width 0.75
NARROW = [
    (16, 3, 16, 16, False, "RE", 1), (16, 3, 64, 24, False, "RE", 2), (24, 3, 72, 24, False, "RE", 1),
    (24, 5, 72, 32, True, "RE", 2), (32, 5, 96, 32, True, "RE", 1), (32, 5, 96, 32, True, "RE", 1),
    (32, 3, 192, 64, False, "HS", 2), (64, 3, 160, 64, False, "HS", 1), (64, 3, 144, 64, False, "HS", 1),
    (64, 3, 144, 64, False, "HS", 1), (64, 3, 384, 88, True, "HS", 1), (88, 3, 528, 88, True, "HS", 1),
    (88, 5, 528, 120, True, "HS", 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def narrow():
    """A narrow trunk whose norms are the identity, as in a graph with folded norms; biases are the norms'."""
    torch.manual_seed(1)
    norm = partial(nn.BatchNorm2d, eps=0.001)
    blocks = [
        InvertedResidual(InvertedResidualConfig(*row[:5], row[5], row[6], 1, 1.0), norm_layer=norm) for row in NARROW
    ]
    model = nn.Sequential(
        Conv2dNormActivation(3, 16, 3, stride=2, norm_layer=norm, activation_layer=nn.Hardswish), *blocks
    )
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.fill_(1 - layer.eps)
            nn.init.normal_(layer.bias, std=0.1)
    return model.eval()


def write_graph(path, model, drop=""):
    """The trunk as TensorFlow.js stores it: float16 and, of the first kernel, 16-bit integers."""
    arrays = {}

    def add(name, layer):
        if isinstance(layer, SqueezeExcitation):
            for conv, own in ((layer.fc1, "Conv"), (layer.fc2, "Conv_1")):
                arrays[f"{name}/squeeze_excite/{own}/weights"] = conv.weight.permute(2, 3, 1, 0)
                arrays[f"{name}/squeeze_excite/{own}/biases"] = conv.bias
            return
        conv, norm = layer[0], layer[1]
        depthwise = conv.groups > 1
        arrays[f"tower_0/{name}_weights"] = conv.weight.permute(*((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)))
        arrays[f"tower_0/{name}_bn_offset"] = norm.bias

    add("MobilenetV3/Conv/Conv2D", model[0])
    for number, block in enumerate(model[1:]):
        name = "MobilenetV3/expanded_conv" + (f"_{number}" if number else "")
        for index, layer in enumerate(block.block):
            if isinstance(layer, SqueezeExcitation):
                add(name, layer)
            elif layer[0].groups > 1:
                add(f"{name}/depthwise/depthwise", layer)
            else:
                add(f"{name}/{'expand' if index == 0 else 'project'}/Conv2D", layer)
    entries, raw = [], b""
    for name, array in arrays.items():
        if name == drop:
            continue
        array = array.detach().numpy()
        entry = {"name": name, "shape": list(array.shape), "dtype": "float32"}
        if name == "tower_0/MobilenetV3/Conv/Conv2D_weights":
            low, scale = float(array.min()), float(np.ptp(array)) / 65535
            entry["quantization"] = {"dtype": "uint16", "min": low, "scale": scale}
            raw += np.round((array - low) / scale).astype("<u2").tobytes()
        else:
            raw += array.astype("<f4").tobytes()
        entries.append(entry)
    path.with_suffix(".bin").write_bytes(raw)
    path.write_text(json.dumps({"weightsManifest": [{"paths": [path.with_suffix(".bin").name], "weights": entries}]}))
    return path


@torch.no_grad()
def test_the_wide_trunk_computes_what_the_narrow_one_did(narrow, tmp_path):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wide = EarlyExitSSDLite(())
    kept = widen(wide, read_graph(write_graph(tmp_path / "narrow.json", narrow)))
    measure_statistics(wide, kept, images)
    theirs, *expected = narrow[0](images * 255), *narrow[1:]
    ours = wide.segment((images - 0.5) / 0.5, 0, 1)
    # at the border the narrow trunk pads with black, the wide one with grey
    assert torch.allclose(ours[:, :, 1:, 1:], theirs[:, :, 1:, 1:], rtol=1e-3, atol=1e-2)
    theirs = ours  # from here on the input is the same
    for number, block in enumerate(expected[:BLOCKS]):
        theirs, ours = block(theirs), wide.segment(ours, number + 1, number + 2)
        channels = theirs.shape[1]
        assert torch.allclose(ours[:, :channels], theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())), number
    last, (depthwise, squeeze, _) = expected[BLOCKS].block, wide.backbone.features[1][0]
    theirs, ours = last[2](last[1](last[0](theirs))), squeeze(depthwise(wide.segment(ours, BLOCKS + 1, None)))
    assert torch.allclose(ours[:, :528], theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert ours[:, 528:].abs().max() > 0  # the other channels are alive


def test_every_norm_of_the_trunk_normalises_its_input(narrow, tmp_path):
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wide = EarlyExitSSDLite(())
    measure_statistics(wide, widen(wide, read_graph(write_graph(tmp_path / "n.json", narrow))), images)
    before = [b.detach().clone() for b in wide.buffers()]
    measure_statistics(wide, {}, images)  # what it measured is what its inputs are
    for old, new in zip(before, wide.buffers(), strict=True):
        assert torch.allclose(old.float(), new.float(), rtol=1e-3, atol=1e-4)
    wide.train()(images)[-1].cls_logits.sum().backward()
    first = wide.backbone.features[0][1].block[0][0].weight
    assert first.grad.abs().sum() > 0


def test_a_start_depends_on_graph_and_seed_alone(narrow, tmp_path):
    path = write_graph(tmp_path / "narrow.json", narrow)
    start = start_weights(path, seed=3)
    torch.manual_seed(3)
    model = EarlyExitSSDLite(())
    widen(model, read_graph(path))
    assert all(torch.equal(start["model"][name], value) for name, value in model.named_parameters() if value.ndim == 4)
    assert start["origin"] == f"narrow.json (SHA-256 {file_sha256(path)[:16]}), widened"


def test_bad_graphs_are_refused(narrow, tmp_path):
    with pytest.raises(TrainingError, match="none.json: no such file; `make pretrained` fetches it"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"weights": []}')
    with pytest.raises(TrainingError, match="other.json: not a TensorFlow.js graph model"):
        read_graph(tmp_path / "other.json")
    path = write_graph(tmp_path / "short.json", narrow)
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:-4])
    with pytest.raises(TrainingError, match="short.json: weights end within"):
        read_graph(path)
    name = "tower_0/MobilenetV3/expanded_conv_3/expand/Conv2D_weights"
    weights = read_graph(write_graph(tmp_path / "hole.json", narrow, drop=name))
    with pytest.raises(TrainingError, match="'MobilenetV3/expanded_conv_3/expand/Conv2D_weights' is missing"):
        widen(EarlyExitSSDLite(()), weights)
    weights[name.removeprefix("tower_0/")] = torch.zeros(1, 1, 24, 999)
    with pytest.raises(TrainingError, match=r"\(999, 24, 1, 1\) is no part of \(72, 24, 1, 1\)"):
        widen(EarlyExitSSDLite(()), weights)
