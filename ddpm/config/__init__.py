"""Config files: their place, and the text and paths in them."""
