"""Files that a command is asked to write, refused before the work begins if their names will not do."""

from __future__ import annotations

__all__ = []
