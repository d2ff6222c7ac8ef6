"""Scores of masks and hierarchies against annotated images."""
