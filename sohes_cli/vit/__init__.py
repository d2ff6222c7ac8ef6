"""Vision transformers of timm: construction, published and own weights, the tensor file format, bundled weights."""
