"""The engine process's own side: opens models, and renders with them."""
