"""The registry of models: their files, where the files come from, and the parameters that each model accepts."""
