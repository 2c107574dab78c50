"""Generation: choosing tokens, knowing when to stop, and running many sequences at once."""
