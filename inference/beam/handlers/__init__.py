"""Model handlers for Beam's RunInference: this project's models, OpenAI-compatible endpoints, and their wrappers."""
