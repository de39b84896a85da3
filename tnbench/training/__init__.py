"""Training: one loop for CPU and GPU, resumable to the bit; `tnbench.training.loop.run` trains a run."""
