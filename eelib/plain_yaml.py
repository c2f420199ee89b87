"""YAML as eelib reads it: plain values, keys that are text and stand once, and nothing that blows up."""

import re

import yaml

MAX_VALUES = 10_000  # of a file once its aliases are followed; the largest parameter file has 150


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node


# YAML 1.1 wants 1.0e-3, and takes 1e-3 for text
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load(text: str) -> object:
    """The value of a YAML text of one document; 1e-3 is a number.

    Raises:
        ValueError: one line that says what is wrong, and in which line of the text.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except _Refused:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"not valid YAML ({error.problem or error.context}{where})") from None
    except RecursionError:
        raise ValueError("not valid YAML (nested too deeply)") from None
    except Exception as error:  # a date that is none, a number of 5,000 digits: any type
        raise ValueError(f"not valid YAML ({' '.join(str(error).split()) or type(error).__name__})") from None


class _Refused(ValueError):
    pass


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Values that a node stands for, aliases followed; refuses what is no plain value."""
    where, known = f"line {node.start_mark.line + 1}", counts.get(id(node))
    if known is not None:
        if not known:
            raise _Refused(f"{where}: a value that holds itself")
        return known
    counts[id(node)] = 0  # in progress
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in inner])
        inner = [part for pair in inner for part in pair]
    counts[id(node)] = total = 1 + sum(_count(part, counts) for part in inner)
    if total > MAX_VALUES:
        raise _Refused(f"{where}: stands for more than {MAX_VALUES:,} values once its aliases are followed")
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        raise _Refused(f"{where}: text with a NUL character")
    return total


def _check_keys(keys: list[yaml.Node]) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            what = key.value[:40] if isinstance(key, yaml.ScalarNode) else f"that is a {key.id}"
            raise _Refused(f"line {line}: key {what} is not text")
        if key.value in lines:
            raise _Refused(f"key '{key.value[:40]}' stands twice, in line {lines[key.value]} and in line {line}")
        lines[key.value] = line
