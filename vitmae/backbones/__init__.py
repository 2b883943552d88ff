"""The encoder: `backbone.py` is its interface, `timm_vit.py` any timm ViT or hybrid."""
