"""Phase 0, photographs -> a backbone: self-distillation, for domains without pretrained weights."""
