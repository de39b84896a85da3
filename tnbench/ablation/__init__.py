"""Ablation suites: read, plan, execute, collect; `tnbench.ablation.command` is what the CLI calls."""
