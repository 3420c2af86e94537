"""The networks, by name, and what loads weights into them."""
