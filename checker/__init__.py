"""Plans, measures and judges llama.cpp tiers on hosts with unequal NVIDIA GPUs."""

__version__ = "0.1.0"
