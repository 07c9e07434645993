"""What a checkpoint is worth: loss on text."""
