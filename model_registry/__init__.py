"""The registry of models: what each is, where its files come from, and what may be asked of it."""
