"""Operations for operators: checks, live view, rebuilds, erasure, verification, anchors."""
