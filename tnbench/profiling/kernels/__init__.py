"""`tnbench profile-kernels`: operators measured against their peers, each proven right before it is timed."""
