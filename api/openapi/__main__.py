"""`python -m api.openapi` prints the document."""

import sys

from api.app import ROUTES
from api.openapi.document import encode_document

sys.stdout.buffer.write(encode_document(ROUTES))
