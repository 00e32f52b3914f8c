"""What a model is for: one file per task."""
