"""SOHES: self-supervised open-world hierarchical entity segmentation (Cao et al., ICLR 2024, arXiv 2404.12386)."""

__all__ = ["__version__"]
__version__ = "0.1.0"
