"""Family of self-play: games, tree search and networks that learn from their own games (AlphaGo, AlphaGo Zero)."""
