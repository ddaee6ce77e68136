"""Engines render requests to images: the client side of the engine process, and the code that runs models in it."""
