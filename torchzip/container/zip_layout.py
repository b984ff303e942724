"""The headers of a zip archive (docs/format.md, section 2).

`LOCAL` precedes a record and `CENTRAL` is its row of the directory; both are followed by the
record's name and extra data. `DESCRIPTOR` follows the bytes of a record, or `DESCRIPTOR_64` if its
sizes have 8 bytes. A number that is `BIG` is in the zip64 field of the extra data instead.
"""

from __future__ import annotations

import struct

LOCAL = struct.Struct("<4sHHHHHLLLHH")
CENTRAL = struct.Struct("<4sHHHHHHLLLHHHHHLL")
DESCRIPTOR = struct.Struct("<4sLLL")
DESCRIPTOR_64 = struct.Struct("<4sLQQ")
DESCRIPTOR_MAGIC = b"PK\7\x08"
BIG = 0xFFFFFFFF

#: Methods of compression; checkpoints use no others.
STORED, DEFLATED = 0, 8
