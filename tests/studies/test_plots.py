"""Figures are saved byte for byte repeatable, and photographs small."""

import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from eelib.config import ROOT
from studies import plots


def photographs():
    boxes = {plots.TRUTH_COLOUR: torch.tensor([[2.0, 2.0, 20.0, 20.0]])}
    images = [torch.randint(0, 255, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()]
    return plots.image_grid(images, [boxes], ["one"], chair=plots.TRUTH_COLOUR)


def line():
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1], color=plots.EXIT_COLOURS["exit1"])
    return figure


@pytest.mark.parametrize(("make", "jpeg"), [(photographs, True), (line, False)])
def test_a_figure_is_repeatable_and_only_photographs_become_a_jpeg(tmp_path, make, jpeg):
    plots.style()
    for folder in ("a", "b"):
        figure = make()
        plots.save(figure, "figure", tmp_path / folder)
        plt.close(figure)
    for suffix in ("pdf", "png"):
        first, again = ((tmp_path / folder / "figures" / f"figure.{suffix}").read_bytes() for folder in ("a", "b"))
        assert first == again
    assert (b"DCTDecode" in (tmp_path / "a" / "figures" / "figure.pdf").read_bytes()) is jpeg
    assert Image.open(tmp_path / "a" / "figures" / "figure.png").mode == "P"


def test_colours_of_exits_stand_for_nothing_else():
    others = {plots.RECORDED_COLOUR, plots.OURS_COLOUR, plots.ALARM_COLOUR, plots.TRUTH_COLOUR, *plots.SERIES_COLOURS}
    assert not others & set(plots.EXIT_COLOURS.values())
    drawing = [*ROOT.glob("studies/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    by_hand = [path.name for path in drawing if any(hue in path.read_text() for hue in plots.EXIT_COLOURS.values())]
    assert not by_hand
