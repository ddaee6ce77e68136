"""Tests with spandrel and torchvision: `make test-gan`."""
