"""page_cache.py FILE [drop]: print how many pages of a file are in memory; with `drop`, drop them first.

What was dropped comes back only when somebody reads the file.
"""

import ctypes
import mmap
import os
import sys

model = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(model).st_size
if "drop" in sys.argv:
    os.fsync(model)
    os.posix_fadvise(model, 0, 0, os.POSIX_FADV_DONTNEED)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, model, 0)
if libc.mincore(address, size, pages) != 0:
    raise OSError(ctypes.get_errno(), "mincore")
print(sum(page & 1 for page in pages.raw))
