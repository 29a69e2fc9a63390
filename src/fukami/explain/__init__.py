"""Model analysis: layers, costs, receptive fields and feature visualization."""
