"""The OpenAPI document: `document` makes it of the routes, the operations that they name, and the types.

The operations stand by noun in `jobs`, `log`, `models` and `service`; `vocabulary` and `common` are what they share.
"""
