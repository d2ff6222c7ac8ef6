"""Converters: the annotations of a published data set, in its own layout, to one COCO file with part-of relations."""
