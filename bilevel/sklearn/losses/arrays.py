"""Types of the data."""

from typing import TypeAlias

import numpy as np
from scipy import sparse

Matrix: TypeAlias = np.ndarray | sparse.csr_matrix  # rows of data, dense or sparse
