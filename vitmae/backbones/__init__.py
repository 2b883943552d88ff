"""What encodes patches: `backbone.py` is the seam, `timm_vit.py` any timm ViT or hybrid behind it."""
