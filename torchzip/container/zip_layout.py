"""The headers of a zip archive, for whoever reads, writes or salvages one.

`LOCAL` stands before a record and `CENTRAL` in the directory, each with the record's name and its
extra data behind it; `DESCRIPTOR` follows the bytes of a record, `DESCRIPTOR_64` where its sizes
have 8 bytes. A field that is `BIG` stands in the extra data, in a field of type 1.
"""

from __future__ import annotations

import struct

LOCAL = struct.Struct("<4sHHHHHLLLHH")
CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
DESCRIPTOR = struct.Struct("<4sLLL")
DESCRIPTOR_64 = struct.Struct("<4sLQQ")
DESCRIPTOR_MAGIC = b"PK\7\x08"
BIG = 0xFFFFFFFF

#: Methods of compression: no others are used in checkpoints.
STORED, DEFLATED = 0, 8
