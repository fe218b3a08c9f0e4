import sys

import pytest

from prime_dht.testing.processes import run


@pytest.mark.parametrize(
    ("missing", "module"), [("ml_dtypes", "rounds"), ("zstandard", "codecs"), ("safetensors", "weights")]
)
def test_what_cannot_be_imported_without_the_extra_says_so(missing: str, module: str) -> None:
    body = f"""
import sys
sys.modules["{missing}"] = None  # as if it were not installed
from prime_dht import ConfigError
try:
    import prime_dht.ml.{module}
except ConfigError as error:
    print(error)
"""
    ended = run(sys.executable, "-c", body)
    assert (ended.status, ended.err) == (0, "")
    assert b"pip install 'prime-dht[ml]' (import of %s halted" % missing.encode() in ended.out
