"""``eelib study run``: what is wrong with a notebook or its kernel is one line."""

import base64
import io

import nbformat
import pytest
from PIL import Image

from eelib.cli import main

pytest.importorskip("papermill")


def notebook(path, *cells):
    """A notebook whose first cell holds its parameters."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return str(path)


def test_a_limit_for_a_notebook_without_one_is_refused(tmp_path, capsys):
    path = notebook(tmp_path / "a.ipynb", "seed = 0")
    assert main(["study", "run", path, "--out", str(tmp_path / "out.ipynb"), "--limit", "3"]) == 2
    assert "limit" in capsys.readouterr().err and not (tmp_path / "out.ipynb").exists()


def test_a_broken_notebook_is_named(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("{")
    assert main(["study", "run", str(tmp_path / "a.ipynb"), "--out", str(tmp_path / "out.ipynb")]) == 2
    line = capsys.readouterr().err
    assert str(tmp_path / "a.ipynb") in line and line.count("\n") == 1


def test_a_kernel_that_dies_is_told(tmp_path, capsys):
    path = notebook(tmp_path / "a.ipynb", "seed = 0", "import os; os._exit(1)")
    assert main(["study", "run", path, "--out", str(tmp_path / "out.ipynb")]) == 1
    assert "its kernel died, which a lack of memory does" in capsys.readouterr().err


def test_an_executed_copy_holds_small_pictures_of_the_same_size(tmp_path):
    draw = "import numpy as np, PIL.Image as I\ndisplay(I.fromarray(np.indices((90, 120, 3)).prod(0).astype('uint8')))"
    path = notebook(tmp_path / "a.ipynb", "seed = 0", draw)
    assert main(["study", "run", path, "--out", str(tmp_path / "out.ipynb")]) == 0
    ran = nbformat.read(tmp_path / "out.ipynb", nbformat.NO_CONVERT)
    (text,) = [o.data["image/png"] for cell in ran.cells for o in cell.outputs if "image/png" in o.get("data", {})]
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    assert (picture.mode, picture.size) == ("P", (120, 90))
