"""Several processes that run one model: who is which rank, and how they talk to one another."""
