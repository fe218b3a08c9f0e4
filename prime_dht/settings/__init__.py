"""Settings: a :class:`NodeConfig` out of a file, the environment and flags.

Terms:

- A *setting* is a field of :class:`NodeConfig`, :class:`DhtConfig` or :class:`Limits`. Its *path* is where it stands in
  the file: ``listen``, or ``alpha`` in the table ``[dht]``. Its *key*, the last part of the path, is unique.
- Its *origin* says for people where its value comes from: ``default``, ``node.toml:7``, ``PRIME_DHT_LISTEN``,
  ``--listen``.
- Its *variable* is ``PRIME_DHT_`` and its path in capitals, joined by ``_``: ``PRIME_DHT_DHT_ALPHA``.
  ``PRIME_DHT_PEER`` and ``PRIME_DHT_REDIS`` are other names of ``PRIME_DHT_PEERS`` and ``PRIME_DHT_REDIS_URL``.

Flags stand over variables, and variables over the file; a value replaces the one below it, lists too. The file is TOML
1.0. Durations are seconds, or text such as ``"12h"``; sizes are bytes, or text such as ``"64KiB"``. A relative path in
the file counts from the file's directory. In a variable the members of a list are separated by spaces; an empty
variable counts as none.

Invariant: what is wrong with settings is a :class:`ConfigError` that begins with the origin of what is wrong.
"""

from prime_dht.settings.load import DEFAULT, Given, Settings, load_settings
from prime_dht.settings.setting import Setting, all_settings

__all__ = ["DEFAULT", "Given", "Setting", "Settings", "all_settings", "load_settings"]
