"""Figures in one style, as PNG and SVG: the only package that knows matplotlib.

`comparison` collects what a figure shows, from results or from logs; the functions that `gallery` lists draw it;
`style.save` writes it.
"""
