"""Stands for MindSpore where a test is about processes: msrun and the scheduler, without three seconds of import."""
