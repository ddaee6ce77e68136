"""`python -m api.openapi` prints the document."""

import sys

from api.app import ROUTES
from api.openapi.document import encoded

sys.stdout.buffer.write(encoded(ROUTES))
