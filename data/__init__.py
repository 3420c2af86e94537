"""Data: sources in one schema, decoding, augmentation, sampling. Knows no model and no engine."""
