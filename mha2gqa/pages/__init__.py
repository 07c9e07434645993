"""Reports as documents: one self-contained HTML page, and the numbers in a model card.

`page.py` renders and writes any page, `figures.py` is the style of every plot; neither knows what is
reported. `verify_figures.py` and `verify_page.py` show a `Verification`; `card.py` adds its numbers to
the card of the converted checkpoint. Templates and the one style sheet lie in `templates/`.

Nothing is measured here. matplotlib and jinja2 are imported only where something is drawn or rendered.
"""
