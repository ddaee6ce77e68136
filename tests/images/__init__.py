"""Tests with torch and diffusers: `make test-images`."""
