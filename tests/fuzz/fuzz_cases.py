"""What a reader may be given: edits of sound plain data, and damage to the bytes that it is stored in.

A case is small and says nothing of the sound input, so that hypothesis draws, shrinks and repeats it without
torch: whoever runs it (:mod:`fuzz_targets`) applies it to a sound input of its kind.
"""

import copy
import re
from typing import NamedTuple

from hypothesis import strategies as st


class Special(NamedTuple):
    """A value that no JSON holds, such as a tensor; the target makes it."""

    kind: str
    number: int


class Edit(NamedTuple):
    """A change at the place that ``route`` leads to: one number for each level, modulo what there is."""

    op: str
    route: tuple[int, ...]
    value: object


class Damage(NamedTuple):
    """A change of bytes at a share of their length."""

    op: str
    place: float
    data: bytes


class Case(NamedTuple):
    """Edits in turn, then damages in turn; ``choice`` is for the target, such as which sound input it starts from."""

    choice: int
    edits: tuple[Edit, ...]
    damages: tuple[Damage, ...]


HUGE = (10**400, 2**63, -(2**63) - 1, 2**31, 10**9, 10**5)
TEXTS = (
    "", " ", "~", "nan", "1e-3", "1e400", "0", "@0", "../../etc/passwd", "/dev/zero", "a\nb", "\x00", "\ud800", "é" * 3,
    "x" * 100_000, "0" * 5000, "\u202e\x1b[31m", "full", "exit1", "exit9", "chair", "none.pth", "params/base",
)  # fmt: skip
floats = st.sampled_from((float("nan"), float("inf"), float("-inf"), 1e308, -1e-320, -1.0, 0.5, 1.5, 1e9))
numbers = st.one_of(
    st.floats(0, 1), st.integers(-3, 400), st.sampled_from(HUGE), st.sampled_from(HUGE).map(lambda n: -n), floats
)
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=8))
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
junk = st.one_of(
    plain,
    st.lists(plain, max_size=4),
    st.dictionaries(texts, plain, max_size=3),
    st.lists(st.lists(numbers, max_size=7), max_size=3),
    st.integers(1, 3000).map(lambda depth: ("deep", depth)),
    st.integers(1, 3000).map(lambda count: ("many", count)),
)
specials = st.builds(Special, st.sampled_from(("tensor", "array", "object")), st.integers(0, 40))
routes = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple)


def edits(values=junk) -> st.SearchStrategy:
    """One to four edits."""
    ops = st.sampled_from(("replace", "replace", "replace", "delete", "add", "swap", "rename", "repeat"))
    return st.lists(st.builds(Edit, ops, routes, values), min_size=1, max_size=4).map(tuple)


HEADS = tuple(n.to_bytes(4, order) for n in (0, 1, 20_000, 2**31 - 1, 2**32 - 1) for order in ("little", "big"))
damages = st.builds(
    Damage,
    st.sampled_from(("cut", "cut", "flip", "flip", "insert", "overwrite", "head", "zero", "drop", "again")),
    st.floats(0, 1),
    st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(HEADS)),
)
TEXT_DAMAGE = ("utf-16", "latin-1", "bom", "nest", "comma", "cut", "flip", "insert", "empty", "many lines")
text_damages = st.builds(Damage, st.sampled_from(TEXT_DAMAGE), st.floats(0, 1), st.binary(min_size=1, max_size=4))


def cases(edit_values=junk, damage=text_damages) -> st.SearchStrategy:
    """Edits alone in four of five, half of them of one value; damage in the others."""
    choice, none = st.integers(0, 100), st.just(())
    deep = st.lists(st.integers(0, 39), min_size=2, max_size=7).map(tuple)
    one = st.builds(Edit, st.sampled_from(("replace", "swap", "repeat")), deep, numbers).map(lambda edit: (edit,))
    gentle = st.builds(Case, choice, one, none)  # one number among many that are right
    edited = st.builds(Case, choice, edits(edit_values), none)
    damaged = st.builds(Case, choice, none, st.lists(damage, min_size=1, max_size=3).map(tuple))
    return st.one_of(gentle, gentle, edited, edited, damaged)


def byte_cases() -> st.SearchStrategy:
    """Damage alone."""
    return st.builds(Case, st.integers(0, 400), st.just(()), st.lists(damages, max_size=4).map(tuple))


def build(value: object, special=lambda value: repr(value)) -> object:
    """The value that a drawn one stands for; nested lists are a mark that :func:`deepened` puts right in a text."""
    if isinstance(value, Special):
        return special(value)
    if isinstance(value, tuple) and value and value[0] == "deep":
        return f"\ue000{value[1]}\ue000"
    if isinstance(value, tuple) and value and value[0] == "many":
        return list(range(value[1]))
    return copy.deepcopy(value)


def edited(base: object, case: Case, special=lambda value: repr(value)) -> object:
    """A copy of plain data with the case's edits."""
    box = {"all": copy.deepcopy(base)}
    for edit in case.edits:
        parent, key = _place(box, edit.route)
        value = build(edit.value, special)
        if edit.op == "replace":
            parent[key] = value
        elif edit.op == "swap":
            other, name = _place(box, edit.route[::-1])
            parent[key] = copy.deepcopy(other[name])
        elif parent is box:
            box["all"] = value
        elif isinstance(parent, dict):
            old = parent[key]
            if edit.op in ("delete", "rename"):
                del parent[key]
            if edit.op != "delete":
                hashable = isinstance(value, str | int | float | bool | None)
                parent[value if hashable else f"{key}_"] = value if edit.op == "add" else old
        elif edit.op == "delete":
            del parent[key]
        else:
            parent.insert(key, value if edit.op == "add" else copy.deepcopy(parent[key]))
    return box["all"]


def deepened(text: str) -> str:
    """JSON or YAML whose marks of nested lists are such lists, however deep: no library writes them."""
    return re.sub(r'"\\u[eE]000(\d+)\\u[eE]000"', lambda m: "[" * int(m[1]) + "0" + "]" * int(m[1]), text)


def _place(box: dict, route: tuple[int, ...]) -> tuple[object, object]:
    parent, key = box, "all"
    for step in route:
        node = parent[key]
        if not isinstance(node, dict | list) or not node or (parent is not box and step == 40):
            break
        parent, key = node, (list(node)[step % len(node)] if isinstance(node, dict) else step % len(node))
    return parent, key


def damaged(content: bytes, case: Case) -> bytes:
    """Bytes with the case's damages."""
    for damage in case.damages:
        at, data = int(damage.place * len(content)), damage.data
        match damage.op:
            case "cut":
                content = content[:at]
            case "flip":
                content = content[:at] + bytes(b ^ data[0] for b in content[at : at + 1]) + content[at + 1 :]
            case "insert":
                content = content[:at] + data + content[at:]
            case "overwrite":
                content = content[:at] + data + content[at + len(data) :]
            case "head":  # where a file states its sizes
                at = int(damage.place * 64)
                content = content[:at] + data + content[at + len(data) :]
            case "zero":
                content = content[:at] + bytes(64) + content[at + 64 :]
            case "drop":
                content = content[:at] + content[at + 16 :]
            case "again":
                content += content[at:]
            case "utf-16" | "latin-1":
                content = content.decode(errors="replace").encode(damage.op, errors="replace") + b"\xe9"
            case "bom":
                content = b"\xef\xbb\xbf" + content
            case "nest":
                content = b"[" * int(1 + damage.place * 200_000) + content
            case "comma":
                content = content.replace(b",", data, 1 + at % 7)
            case "empty":
                content = b""
            case "many lines":
                content += b"\n\n}{" * 1000
    return content
