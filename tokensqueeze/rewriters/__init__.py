"""What may stand in for a step: candidates from the model's own draws, and the rules that accept them."""
