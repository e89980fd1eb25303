"""What a run has read, kept with its source."""
