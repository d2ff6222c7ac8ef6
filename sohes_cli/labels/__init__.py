"""The label store: one JSON record an image, a manifest beside them, and their export to COCO."""
