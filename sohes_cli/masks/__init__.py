"""Masks of one image: packed bits, COCO's encodings, comparison, redrawing and resampling."""
