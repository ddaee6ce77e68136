"""What operators run: checks, live view, rebuilds, erasure, anchors."""
