"""Make reasoning models think in fewer tokens at the same accuracy, on a Ray cluster, with the model's own data."""

__version__ = "0.1.0"
