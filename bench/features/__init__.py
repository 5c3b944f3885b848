"""Features of images: what a network sees in them, computed once a cell and set."""
