"""Parts that two papers share."""
