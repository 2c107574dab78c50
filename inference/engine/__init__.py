"""The engine: requests, scheduler, sampling and metrics. Knows token ids; never sees text."""
