"""Photographs on disk: the names in a folder or a list, and image files decoded to upright 8-bit RGB."""
