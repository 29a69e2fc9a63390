"""What a network consists of, what it costs, and what it sees."""
