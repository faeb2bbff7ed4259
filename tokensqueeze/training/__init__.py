"""Training on pairs with Ray Train and DeepSpeed: killed at any moment and run again, it gives the same."""
