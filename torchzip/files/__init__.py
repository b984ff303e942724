"""Bytes at rest: positioned reads, all-or-nothing writes, CRC-32."""
