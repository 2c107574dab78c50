"""The Python API: AutoConfig, AutoTokenizer, AutoModel, LLM and pipeline."""
