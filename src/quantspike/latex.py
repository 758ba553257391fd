"""Tables of text as LaTeX: floats with booktabs rules, everything escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pandas as pd

TextTable = list[list[str]]
"""A table as it is shown: the titles, then the cells of each row."""

NOTHING = "-"
"""The cell of a text table in which there is nothing."""

_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "≠": r"$\neq$",
        "Δ": r"$\Delta$",
    }
)


def latex_float(tables: Sequence[TextTable], caption: str, label: str, left: Collection[str]) -> str:
    """A `table` environment with one or several tables below each other, for the packages booktabs and adjustbox.

    A title such as `SOPs (million)` takes two lines, quantity and unit, so that a column is as narrow as its numbers;
    a title without a unit stands in the second line, under the quantity to its left.

    Args:
        tables: titles and cells.
        caption: plain text, to be escaped.
        label: for references, as it is: letters, digits, colons, hyphens and underscores.
        left: titles of the columns of words; the others hold numbers, and stand to the right.
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{label}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
    ]
    # Published figures beside ours are more than most pages have room for.
    begin, end = r"\begin{adjustbox}{max width=\textwidth}", r"\end{adjustbox}"
    boxed = (f"{begin}\n{_tabular(table, left)}{end}\n" for table in tables)
    tabulars = "\n\\medskip\n\n".join(boxed)
    return "\n".join([*lines, tabulars + r"\end{table}", ""])


def escaped(text: str) -> str:
    """Plain text as LaTeX that shows it, with quotation marks that open and close."""
    return re.sub(r'"([^"]*)"', r"``\1''", text).translate(_SPECIAL)


def _tabular(table: TextTable, left: Collection[str]) -> str:
    titles = [(escaped(quantity), escaped(unit)) for quantity, unit in _two_lines(table[0])]
    cells = [[_cell(cell) for cell in line] for line in table[1:]]
    return pd.DataFrame(cells, columns=pd.MultiIndex.from_tuples(titles)).to_latex(
        index=False,
        escape=False,
        column_format="".join("l" if title in left else "r" for title in table[0]),
        multicolumn_format="c",
    )


def _two_lines(titles: Sequence[str]) -> list[tuple[str, str]]:
    lines = [("", "")]
    for title in titles:
        with_unit = re.fullmatch(r"(.+) \((.+)\)", title)
        lines.append((with_unit[1], with_unit[2]) if with_unit else (lines[-1][0], title))
    return lines[1:]


def _cell(text: str) -> str:
    if text == NOTHING:
        return "--"
    return f"$-${escaped(text[1:])}" if text.startswith("-") else escaped(text)
