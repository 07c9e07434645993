"""Text as token blocks, for evaluation and for calibration.

`documents` reads text from files and data sets, `blocks` packs it into equal blocks or has the model
write it, `find` decides which of these a command gets. Nothing here knows what the blocks are for.
"""
