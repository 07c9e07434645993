"""Reports as documents: one self-contained HTML page.

`page.py` renders and writes any page, `figures.py` is the style of every plot; neither knows what is
reported; the `page.py` of each verb does. Templates and the one style sheet lie in `templates/`.

Nothing is measured here. matplotlib and jinja2 are imported only where something is drawn or rendered.
"""
