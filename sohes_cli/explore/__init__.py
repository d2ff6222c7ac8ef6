"""Phase 1, self-exploration: from a folder of photographs to a forest of masks for each of them."""
