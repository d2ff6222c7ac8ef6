"""Phase 1, self-exploration: a folder of photographs -> a forest of masks for each of them."""
