"""Frames and message codecs: bytes in, values out; nothing here does I/O."""
