"""The networks, by name, and their normalisation layers."""
