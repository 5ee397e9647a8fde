"""Graphs that are added to a model so that it explains itself in the same run."""
