"""Trained networks as ONNX and torch.export files, and back."""
