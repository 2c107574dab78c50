"""What a program imports: AutoConfig, AutoTokenizer, AutoModel, LLM, pipeline."""
