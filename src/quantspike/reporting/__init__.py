"""From result files to what people read.

In: the metrics folders of finished runs (`results`), the published figures (`published`), and simulation logs in the
published format (`logs`). Out: CSV, Markdown and LaTeX tables (`tables`, `summary`) and figures (`figures`, the only
package that imports matplotlib). Nothing here imports torch.
"""
