"""`tnbench profile-model`: the speed, memory and energy of whole models in training and inference."""
