"""Models shipped with the package, one folder each in the layout `save_pretrained` writes."""
