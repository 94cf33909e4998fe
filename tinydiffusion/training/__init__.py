"""The trainer and its parts; it trains any objective and knows no diffusion."""
