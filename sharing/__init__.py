"""A run on the Hugging Face hub: what is sent, and the card that describes it."""
