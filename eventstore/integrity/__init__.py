"""Proof that the log is what was written.

- `chain`     the formulas of the hash chains
- `verifier`  checks events against both chains, and names what was changed
- `reader`    reads events with all that their proof needs
- `bundle`    histories as a file that can be verified without a database
- `anchors`   signed heads of the log
"""
