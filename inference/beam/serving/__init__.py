"""Models inside a Beam worker: loaded once, shared by threads, swapped for a new version while rows run."""
