"""Text as token blocks, for evaluation and for calibration.

`documents` reads text from files and data sets, or sources and targets, both from `tables` (`local` or saved ones, or
those of the Hub), in the columns that `columns` chooses; `chats` makes tokens of conversations, and `spans` finds the
answers in them; `blocks` packs documents into equal blocks, and takes the loss on them; `written` has the
model write some; `find` decides which of these a command gets. Nothing here knows what the text is for.
"""
