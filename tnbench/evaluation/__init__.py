"""What trained models do: generation from a run's weights."""
