"""What a rewriting does to the model's predictions of what follows."""
