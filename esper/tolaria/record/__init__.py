"""What a run leaves behind and goes on from: the journal, what was recorded, checkpoints."""
