"""Using trained weights: ``load_trained`` from Python, and what predict.py consists of."""
