"""What a network is made of, what it costs, and what it sees."""
