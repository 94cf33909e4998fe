"""The mathematics of diffusion: noise levels, prediction types, loss weights, guidance."""
