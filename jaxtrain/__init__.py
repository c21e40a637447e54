"""jaxtrain: train, resume, evaluate and serve five forecasting systems in JAX."""

__version__ = "0.1.0"
