"""Labels: the store of one JSON record per image and a manifest, COCO export, and sources in any format."""
