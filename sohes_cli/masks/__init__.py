"""Masks of one image: packed bits, COCO run-lengths, comparison, redrawing and resampling."""
