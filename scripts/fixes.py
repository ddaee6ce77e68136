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
    Mutant(
        "06-failed-starts-count",
        "runners/steps.py",
        "            await self._fail_start(state, step, claim, classified(error))\n            return None\n",
        "            raise\n",
        "tests/store/test_troubled_steps.py -k never_starts",
    ),
    Mutant(
        "06-unreadable-job-keeps-its-command",
        "runners/steps.py",
        "except NoSuchJob as error:",
        "except LookupError as error:",
        "tests/store/test_troubled_steps.py -k cannot_be_folded",
    ),
)

if __name__ == "__main__":
    sys.exit(main(FIXES, sys.argv[1:]))
