"""Photographs on disk: the names below a folder or in a list, and any image file as upright 8-bit RGB."""
