"""Several processes that run one model: which rank a process is, and how ranks communicate."""
