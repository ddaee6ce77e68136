"""The code that runs in the engine process: opens models and renders with them."""
