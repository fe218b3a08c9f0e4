"""Codecs: tensors as few bytes, with a bound on the error. Pure of I/O, clock and chance.

- ``codec``: the codecs, each with its bound; ``encoding``: bytes that say themselves how they are read;
- ``feedback``: what a codec left out of one gradient is added to the next.
"""

from prime_dht.ml.codecs.codec import Bf16, Codec, Fp16, Int8, Plain, TopK
from prime_dht.ml.codecs.encoding import CONTENT_TYPE, Encoded, codec_named, decode, encode, read_header
from prime_dht.ml.codecs.feedback import ErrorFeedback

__all__ = [
    "CONTENT_TYPE",
    "Bf16",
    "Codec",
    "Encoded",
    "ErrorFeedback",
    "Fp16",
    "Int8",
    "Plain",
    "TopK",
    "codec_named",
    "decode",
    "encode",
    "read_header",
]
