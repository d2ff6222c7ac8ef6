"""The network of phases 2 and 3: a ViT with an adapter, a pixel decoder, a query decoder and the ancestor head."""
