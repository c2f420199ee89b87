"""Which model may be what."""

import ast
import hashlib
import json
import tomllib

import pytest

from showroom import ROOT, roles


def test_splits_share_no_chair_and_scenes_hold_nothing_ambiguous():
    train, val, calibrate, test = (set(roles.flatten(roles.chairs_of(split))) for split in roles.SPLITS)
    assert not train & val and not train & test and not val & test
    assert calibrate == test and len(val) == len(test) == 9
    assert not set(roles.AMBIGUOUS) & set(roles.all_models())
    assert not set(roles.flatten(roles.DISTRACTORS)) & (train | val | test)
    assert "sc/ext_chair" in roles.AMBIGUOUS
    with pytest.raises(ValueError, match="split: 'dev' is unknown"):
        roles.chairs_of("dev")


def test_the_roles_are_those_of_version_1():
    # A model that is added, moved or renamed changes every scene after it: then the data gets another version.
    content = tomllib.loads((ROOT / "showroom" / "roles.toml").read_text())
    text = json.dumps(content, sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "1b094f8bcbcc7c9936caccaee3cd4d0d105eb050c104547619e6b4b6229b9b90"
    )
    assert len(roles.flatten(roles.CHAIRS)) == 57 and len(roles.flatten(roles.DISTRACTORS)) == 259
    assert len(roles.all_models()) == 313


def test_the_renderer_is_a_program_of_its_own():
    for path in (ROOT / "showroom").glob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {name for node in imports for name in [getattr(node, "module", None), *(a.name for a in node.names)]}
        assert not {str(name).split(".")[0] for name in names} & {"eelib", "studies", "torch"}, path
