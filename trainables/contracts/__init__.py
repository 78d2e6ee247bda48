"""What every method, model and data set must do, as test classes that anybody's own can be run through.

One file a kind: `methods`, `models`, `datasets`; docs/extending.md shows their use. They need pytest, and nothing but
tests imports them.
"""

import pytest

# So that a failed check shows its values, as in a test's own file.
pytest.register_assert_rewrite(*(f"{__name__}.{each}" for each in ("datasets", "methods", "models", "named")))
