"""Help as two columns of plain text."""

import textwrap

from cyclopts.help.formatters.plain import PlainFormatter

COLUMN, WIDEST = 26, 110  # where the second column begins, and where lines end at the latest


class Columns(PlainFormatter):
    """Names on the left, what they mean on the right; no default is told that is no more than "off"."""

    def _format_parameter_entry(self, options, desc, console, entry) -> None:
        """One parameter."""
        parts = [desc, f"[{', '.join(entry.choices)}]" if entry.choices else "", "(required)" if entry.required else ""]
        parts.append(f"(default {entry.default})" if entry.default not in (None, "False") else "")
        self._row(", ".join(options), " ".join(filter(None, parts)), console)

    def _format_command_entry(self, names, shorts, desc, console) -> None:
        """One command."""
        self._row(", ".join((*names, *shorts)), desc, console)

    def _row(self, left: str, right: str, console) -> None:
        indent = " " * COLUMN
        text = textwrap.fill(
            " ".join(right.split()), min(console.width, WIDEST) - 1, initial_indent=indent, subsequent_indent=indent
        )
        left = f"  {left}"
        fits = len(left) < COLUMN - 1
        self._print_plain(console, left + text[len(left) :] if fits and text else f"{left}\n{text}".rstrip())
