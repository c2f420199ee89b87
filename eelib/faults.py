"""What is wrong with a data set, in words: one line, of bounded length, that names the place."""

from typing import NamedTuple

from eelib.files import InputError

EXAMPLES = 3  # places named with a problem


class DataError(InputError):
    """The data set is not what it should be; the message, one line, names the file and the key."""


class Problem(NamedTuple):
    """What is wrong with an annotation file, or likely wrong.

    Attributes:
        severity: ``error`` (training and evaluation refuse the file), ``warning`` (legal and likely wrong) or
            ``note`` (what the reader made of it).
        where: place in the file of the first one.
        message: what is wrong with the first one.
        count: how many there are.
        others: places of the next few.
    """

    severity: str
    where: str
    message: str
    count: int = 1
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        also = f"; also {', '.join(self.others)}" if self.others else ""
        return f"{place}{self.message}" + (f" ({self.count} of this kind{also})" if self.count > 1 else "")


class Problems(dict):
    """Problems by kind, in the order in which they were met."""

    def add(self, severity: str, kind: str, where: str, message: str) -> None:
        """Count a problem; the first of a kind is told, the next few are named."""
        first = self.get(kind)
        if first is None:
            self[kind] = Problem(severity, where, message)
        else:
            self[kind] = first._replace(count=first.count + 1, others=(*first.others, where)[: EXAMPLES - 1])
