"""Reports as documents: one self-contained HTML page, and the numbers in a model card.

`page.py` renders and writes any page, `figures.py` is the style of every plot; neither knows what is
reported; the `page.py` of each verb does. `front_matter.py` sets a key in the header of a card. Templates and the one
style sheet lie in `templates/`.

Nothing is measured here. matplotlib and jinja2 are imported only where something is drawn or rendered.
"""
