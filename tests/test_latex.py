"""Text tables as LaTeX."""

from __future__ import annotations

import pytest

from quantspike.latex import escaped, latex_float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % of a_b & c #1 $2", r"50 \% of a\_b \& c \#1 \$2"),
        ("{x} ~ ^ a\\b", r"\{x\} \textasciitilde{} \textasciicircum{} a\textbackslash{}b"),
        ("a < b > c | d", r"a \textless{} b \textgreater{} c \textbar{} d"),
        ('He wrote "yes", not "no".', "He wrote ``yes'', not ``no''."),
        ("1 ± 2, Δ, ≠", r"1 $\pm$ 2, $\Delta$, $\neq$"),
    ],
)
def test_special_characters_are_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_a_float_holds_its_tables_below_each_other() -> None:
    first = [["model", "ANN (%)", "published", "Δ"], ["my_net", "92.8 ± 0.1", "92.7", "-0.1"]]
    second = [["model", "SOPs (million)"], ["my_net", "-"]]
    assert latex_float([first, second], caption="100 % of it", label="tab:a-b_c", left=("model",)) == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{100 \% of it}",
            r"\label{tab:a-b_c}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            r"\begin{adjustbox}{max width=\textwidth}",
            r"\begin{tabular}{lrrr}",
            r"\toprule",
            r" & \multicolumn{3}{c}{ANN} \\",
            r"model & \% & published & $\Delta$ \\",
            r"\midrule",
            r"my\_net & 92.8 $\pm$ 0.1 & 92.7 & $-$0.1 \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            "",
            r"\medskip",
            "",
            r"\begin{adjustbox}{max width=\textwidth}",
            r"\begin{tabular}{lr}",
            r"\toprule",
            r" & SOPs \\",
            r"model & million \\",
            r"\midrule",
            r"my\_net & -- \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{table}",
            "",
        ]
    )
