"""The OpenAPI document: `build_document` makes it of the routes, the operations that they name, and the types.

The operations are in `jobs`, `log`, `models` and `service`; they share `vocabulary` and `common`.
"""
