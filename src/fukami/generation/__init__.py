"""Image generation: DCGAN."""
