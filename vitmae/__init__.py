"""vitmae: what does masking buy? Supervised ViT, masked patch prediction and MAE over one backbone."""

__version__ = "0.1.0"
