"""Where objects may be: boxes for a network to look into."""
