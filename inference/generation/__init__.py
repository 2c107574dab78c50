"""Text generation: encodes prompts, runs them on engines, detects where answers end, and decodes them."""
