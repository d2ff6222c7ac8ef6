"""Phases 2 and 3, labels -> a model: learner, teacher, losses, loop, checkpoints (shared with phase 0)."""
