"""The loops from noise to picture, one file each; see `protocols.Sampler`."""
