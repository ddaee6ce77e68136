"""Takes back one fix at a time, in a copy of the tree, and expects the test that came with it to fail.

`make fixes` runs all; `python scripts/fixes.py 04 …` some, by the beginning of their names: the number of the report
that the fix answers, and its subject. Exits 1 if a test passes without its fix.
"""

import sys

from mutants import Mutant, main

FIXES: tuple[Mutant, ...] = (
    Mutant(
        "01-document-as-the-library-words-it",
        "api/openapi.py",
        "    return {name: _normalised(schema) for name, schema in schemas.items()}",
        "    return dict(schemas)",
        "tests/unit/test_openapi.py -k 'committed or does_not_depend'",
    ),
)

if __name__ == "__main__":
    sys.exit(main(FIXES, sys.argv[1:]))
