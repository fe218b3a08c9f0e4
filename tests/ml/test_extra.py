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


def test_whoever_looks_through_all_public_names_needs_no_extra() -> None:
    """As ``help(prime_dht)``, a star import and an editor do."""
    body = """
import sys
for missing in ("ml_dtypes", "safetensors", "zstandard", "fsspec", "coredis"):
    sys.modules[missing] = None  # as if it were not installed
import pydoc
import prime_dht
print("CLASSES" in pydoc.plaintext.document(prime_dht))
from prime_dht import *
try:
    Checkpoints(None, "run", every=1)
except ConfigError as error:
    print(error)
"""
    ended = run(sys.executable, "-c", body)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(b"True\nthis needs the extra for machine learning")
