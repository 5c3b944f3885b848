"""One-off studies behind pages of results/; nothing imports them."""
