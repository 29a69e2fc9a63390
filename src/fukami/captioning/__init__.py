"""Image captioning: Show and Tell."""
