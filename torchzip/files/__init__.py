"""Files: positioned reads, all-or-nothing writes, CRC-32."""
