"""Text as token blocks, for evaluation and for calibration.

`documents` reads text from files and data sets, or sources and targets, both from `tables`; `blocks` packs documents
into equal blocks or has the model write them, and takes the loss on them; `find` decides which of these a command gets.
Nothing here knows what the text is for.
"""
