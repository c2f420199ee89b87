"""Archives and models."""

import zipfile

import numpy as np
import pytest

from showroom import ShowroomError, catalogue, models
from showroom.materials import Recolour, of_model


def test_catalogue_reads_the_properties_of_a_model(archives):
    entries = catalogue.read_catalogue(archives)
    cube = entries["bs0/cube"]
    assert (cube.name, cube.licence, cube.creator) == ("Ta¼ble long", "CC0", "Someone, else")
    assert cube.dims_m == (2.0, 0.5, 1.0)
    assert entries["bs0/turned"].rotation == (0, 0, 1, 0, 1, 0, -1, 0, 0)
    assert catalogue.attribution(entries, ["bs0/cube"]).splitlines()[1] == (
        'bs0/cube,Ta¼ble long,"Someone, else",CC0,BlendSwap-CC-0'
    )


def test_bad_archives_are_named(archives, tmp_path):
    with pytest.raises(ShowroomError, match="the archives lack 1 models, such as sc/chair"):
        catalogue.attribution({}, ["sc/chair"])
    with pytest.raises(ShowroomError, match=r"no furniture archive .* in .*nowhere; run `make furniture`"):
        catalogue.furniture_folder(tmp_path / "nowhere")
    with zipfile.ZipFile(archives / "Scopia.sh3f", "w") as file:
        file.writestr(catalogue.CATALOGUE_FILE, "id#7=Scopia#x\nname#7=X\nwidth#7=wide\n")
    with pytest.raises(ShowroomError, match=r"Scopia.sh3f: model #7: bad or missing property .*'wide'"):
        catalogue.read_catalogue(archives)
    (archives / "Scopia.sh3f").rename(archives / "Other.sh3f")
    with pytest.raises(ShowroomError, match="Other.sh3f: unknown library"):
        catalogue.read_catalogue(archives)


def test_model_has_the_size_of_the_catalogue_and_stands_on_the_floor(archives):
    entry = catalogue.read_catalogue(archives)["bs0/cube"]
    wood, glass = models.load(entry)
    points = np.concatenate([wood.vertices, glass.vertices])
    np.testing.assert_allclose(points.min(0), [-1, 0, -0.5], atol=1e-6)
    np.testing.assert_allclose(points.max(0), [1, 0.5, 0.5], atol=1e-6)
    assert [len(part.faces) for part in (wood, glass)] == [4, 2]  # fans of quads; the line is dropped
    np.testing.assert_allclose(np.linalg.norm(wood.normals, axis=1), 1, atol=1e-6)
    assert wood.uvs.max(0).tolist() == [2, 3]  # -s scales the texture
    assert wood.material.texture is None and glass.material.texture == "things/cube/sub/image.PNG"
    look = of_model(glass.material, catalogue.open_archive(entry.archive), Recolour(np.random.default_rng(0), False))
    assert look.glass


def test_rotation_is_applied_before_scaling(archives):
    entries = catalogue.read_catalogue(archives)
    plain, turned = (models.load(entries[f"bs0/{name}"])[0].normals for name in ("cube", "turned"))
    assert plain[:, 2].min() == -1 and turned[:, 0].min() == -1  # the face at -z goes to -x


def test_an_archive_cannot_fill_the_memory(archives, monkeypatch):
    archive = catalogue.open_archive(archives / "BlendSwap-CC-0.sh3f")
    size = len(archive.read("things/cube/cube.obj"))
    monkeypatch.setattr(catalogue, "_LARGEST_FILE", size - 1)
    with pytest.raises(ShowroomError, match=rf"cube.obj unpacks to {size} bytes"):
        archive.read("things/cube/cube.obj")
