"""Sizes that trade memory for speed and change no result: buffers, blocks, chunks, numbers of workers.

They are collected here because `coordexp.runtime` is no part of a stage's code identity (`runtime.code_identity`):
another value reruns nothing. A number that any output depends on must not be moved here.
"""

# datasets
IMAGES_PER_CHUNK = 1024  # most images per chunk of a conversion; small splits have smaller chunks to keep workers busy
JSON_READ_BYTES = 1 << 20  # read at once while scanning an annotation file
JSON_RANGE_BYTES = 1 << 26  # of an annotation file that one process scans
ELEMENTS_PER_BLOCK = 8192  # annotations decoded at once while the index is built
ROWS_PER_BLOCK = 1 << 18  # of an array on disk that are read or written at once
KEYS_IN_MEMORY = 1 << 21  # compared at once in a search for repeated or equal keys: about 100 bytes each
JOIN_BYTES = 1 << 20  # copied at once when finished chunks are joined
PARALLEL_DOWNLOADS = 4

# modeling
COPY_BYTES = 2 << 20  # copied at once from one safetensors file to another
WRITER_THREADS = 8  # most threads that write a safetensors file

# losses
LOGITS_PER_CHUNK = 1 << 18  # on a CPU: a chunk and its intermediate results stay in the cache of a core
ACCELERATOR_LOGITS_PER_CHUNK = 1 << 27

# inference
CACHE_COLUMNS = 256  # least number of columns by which the key/value buffers grow
ACCELERATOR_COLUMNS = 64  # on a GPU: columns in use are rounded up to a multiple, so that few shapes occur
ENCODING_THREADS = 8  # prepare images while a GPU decodes; on a CPU they would only compete with it

# evaluation
PAIRS_PER_BLOCK = 250_000  # pairs of boxes compared at once
BOXES_PER_PART = 500_000  # boxes whose pairs are looked for at once
DETECTIONS_PER_PART = 1_000_000  # detections that hotcoco gets at once
DENSE_PAIRS = 512  # in groups with more pairs per box, boxes are compared one by one with all others
