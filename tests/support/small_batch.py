"""Two short rows of token ids, one of them padded, for tests that ask whether two engines agree."""

import numpy as np

BATCH = {"input_ids": np.array([[2, 5, 3], [2, 3, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
"""int64 [2, 3] each."""
