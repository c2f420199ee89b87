"""A furniture folder and models that are made up for each test."""

import zipfile

import pytest
from PIL import Image

from showroom import ROOT, catalogue, roles
from showroom.catalogue import Entry

PROPERTIES = r"""
# two models of one archive
id=Blend Swap CC-0
id#1=Blend Swap CC-0#cube
name#1=Ta\u00bcble \
    long
model#1=/Things/Cube/cube.obj
width#1=200
depth#1=100
height#1=50
creator#1=Someone, else
id#2=Blend Swap CC-0#turned
name#2=Turned
model#2=/things/cube/CUBE.obj
width#2=100
depth#2=100
height#2=100
modelRotation#2=0 0 1 0 1 0 -1 0 0
"""
# A 2 x 2 x 2 cube off the origin: quads, one face by negative indices, a line without area, a normal of length 2.
OBJ = """
mtllib C:\\author\\cube.MTL
v 1 1 1
v 3 1 1
v 3 3 1
v 1 3 1
v 1 1 3
v 3 1 3
v 3 3 3
v 1 3 3
vt 0 0
vt 1 0
vt 1 1
vn 0 0 -2
usemtl wood
f 1/1/1 4/2/1 3/3/1 2/1/1
f -4 -3 -2 -1
usemtl glass
f 1 2 6 5
f 1 1 2
"""
MTL = "newmtl wood\nKd 0.5 0.4 0.3\nmap_Kd -s 2 3 1 none.jpg\nnewmtl\tglass\nKd 1 1 1\nd 0.4\nmap_Kd SUB\\Image.png\n"


@pytest.fixture
def archives(tmp_path):
    """A furniture folder with one archive."""
    Image.new("RGB", (4, 4), "red").save(tmp_path / "image.png")
    with zipfile.ZipFile(tmp_path / "BlendSwap-CC-0.sh3f", "w") as file:
        file.writestr(catalogue.CATALOGUE_FILE, PROPERTIES.encode("latin-1"))
        file.writestr("things/cube/cube.obj", OBJ)
        file.writestr("things/cube/cube.mtl", MTL)
        file.write(tmp_path / "image.png", "things/cube/sub/image.PNG")
    return tmp_path


def _entry(key: str) -> Entry:
    """A made-up model: chairs 0.5 x 0.9 x 0.5 m, everything else 1.2 x 0.7 x 0.8 m, small things on tables."""
    dims_m = (1.2, 0.7, 0.8)
    if key in roles.DISTRACTORS["tabletop"]:
        dims_m = (0.1, 0.2, 0.1)
    if key in roles.flatten(roles.CHAIRS):
        dims_m = (0.5, 0.9, 0.5)
    return Entry(key, key, "", "CC0", "BlendSwap-CC-0", ROOT, "", dims_m, ())


@pytest.fixture(scope="session")
def entries():
    """A made-up catalogue of all models."""
    return {key: _entry(key) for key in roles.all_models()}
