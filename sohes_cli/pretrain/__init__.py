"""Phase 0: photographs -> a backbone, by self-distillation, for those who have no pretrained weights for their kind of images."""
